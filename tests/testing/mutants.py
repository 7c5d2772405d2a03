"""Broken components: each breaks one clause of its contract, and the check of its kind must say which."""

from __future__ import annotations

import torch

from specdecodes.core.sampling import Rng
from specdecodes.core.tree import Tree, Verdict, topology_of
from specdecodes.hookspecs import hookimpl
from specdecodes.plugins.states.copy import StateCopy
from specdecodes.plugins.states.replay import Replay
from specdecodes.plugins.trees.best_first_sampled import BestFirstSampled
from specdecodes.plugins.trees.static import Static
from specdecodes.plugins.verifiers.base import WalkingVerifier, chosen, followed
from specdecodes.plugins.verifiers.block import Block
from specdecodes.plugins.verifiers.commonsense import Commonsense
from specdecodes.plugins.verifiers.entropy_gate import EntropyGate
from specdecodes.plugins.verifiers.greedy import Greedy
from specdecodes.plugins.verifiers.residual import MultiStep, Rejection, WithoutReplacement
from specdecodes.plugins.verifiers.token_match import TokenMatch
from specdecodes.plugins.verifiers.traversal import Traversal
from specdecodes.plugins.verifiers.typical import Typical
from specdecodes.testing.literal import LiteralDrafter, LiteralProposal
from specdecodes.testing.toys import VOCAB, numbers, toy_bigrams, toy_context

# -- tree builders ------------------------------------------------------------------------------------------------


class Redrawing(Static):
    """Base: ``redraw`` changes what was drawn before the tree is made of it."""

    @hookimpl
    def build_tree(self, state, proposal):
        inner, outer = state.rng, self

        class Changed(Rng):
            def draws(self, probs, count, replacement):
                return outer.redraw(inner, probs, count, replacement)

        state.rng = Changed(0)
        try:
            return super().build_tree(state, proposal)
        finally:
            state.rng = inner


class SortedSiblings(Redrawing):
    """STree re-sorts drawn siblings by the draft's logits."""

    def redraw(self, rng, probs, count, replacement):
        drawn = rng.draws(probs, count, replacement)
        order = probs.gather(1, drawn.clamp(min=0)).argsort(dim=1, descending=True)
        return drawn.gather(1, order)


class DroppedChild(Redrawing):
    """Draws one more and drops the least likely."""

    def redraw(self, rng, probs, count, replacement):
        drawn = rng.draws(probs, count + 1, replacement)
        worst = probs.gather(1, drawn.clamp(min=0)).argmin(dim=1, keepdim=True)
        keep = torch.arange(count + 1)[None] != worst
        return drawn[keep].view(-1, count)


class OnlyLikely(Redrawing):
    """Ends the children at the first unlikely one: their number depends on what was drawn."""

    def redraw(self, rng, probs, count, replacement):
        drawn = rng.draws(probs, count, replacement)
        likely = probs.gather(1, drawn.clamp(min=0)) > 1.0 / probs.shape[1]
        return drawn.masked_fill(likely.cumprod(1) == 0, -1)


class DropsUnlikelyLast(Redrawing):
    """Leaves out the last draw where it is an unlikely one."""

    def redraw(self, rng, probs, count, replacement):
        drawn = rng.draws(probs, count, replacement)
        unlikely = probs.gather(1, drawn.clamp(min=0)) < 1.0 / probs.shape[1]
        unlikely[:, :-1] = False
        return drawn.masked_fill(unlikely, -1)


class PicksByDraw(BestFirstSampled):
    """Draws first where the next draw is going to be a likely token."""

    def __init__(self, context=None):
        super().__init__(context, max_nodes=24, threshold=0.0)

    def _draw(self, row, nodes, drawn, chances):
        for i in sorted(range(len(nodes)), key=lambda i: -chances[i][0])[:2]:
            for token, chance in list(zip(drawn[i], chances[i], strict=True))[:2]:
                if token >= 0:
                    row.add(nodes[i], token, chance)


class LooksAhead(BestFirstSampled):
    """Draws more often at one node if the next draw at another, which is not made, would be a likely token."""

    def __init__(self, context=None):
        super().__init__(context, max_nodes=24, threshold=0.0)

    def _draw(self, row, nodes, drawn, chances):
        counts = [2] if len(nodes) == 1 else [1, 1 + (chances[0][1] > 0.2)]
        for i, count in enumerate(counts):
            for token, chance in list(zip(drawn[i], chances[i], strict=True))[:count]:
                if token >= 0:
                    row.add(nodes[i], token, chance)


class OwnRandomness(Redrawing):
    """Draws past the rng that it was given."""

    def redraw(self, rng, probs, count, replacement):
        return torch.multinomial(probs, count, replacement=True)


class Altered(Static):
    """Base: ``alter`` changes the finished tree."""

    @hookimpl
    def build_tree(self, state, proposal):
        return self.alter(super().build_tree(state, proposal))


class OtherLogq(Altered):
    """Hands the verifier what the draft thought at another node."""

    def alter(self, tree):
        logq = None if tree.logq is None else tree.logq.roll(1, dims=1)
        return Tree(tree.tokens, tree.parents, tree.num_nodes, tree.slots, logq, tree.draws)


class SwappedSlots(Altered):
    """Confuses the slots of two siblings."""

    def alter(self, tree):
        slots = tree.slots.clone()
        slots[:, [1, 2]] = slots[:, [2, 1]]
        return Tree(tree.tokens, tree.parents, tree.num_nodes, slots, tree.logq, tree.draws)


class ForgottenSlots(Altered):
    """Claims that the drafter has run nothing but the root."""

    def alter(self, tree):
        slots = torch.full_like(tree.slots, -1)
        slots[:, 0] = 0
        return Tree(tree.tokens, tree.parents, tree.num_nodes, slots, tree.logq, tree.draws)


class WrongRoot(Altered):
    """Puts another token at node 0."""

    def alter(self, tree):
        tokens = tree.tokens.clone()
        tokens[:, 0] = 0
        return Tree(tokens, tree.parents, tree.num_nodes, tree.slots, tree.logq, tree.draws)


class Shrinking(Altered):
    """Cuts padding off instead of keeping the number of nodes."""

    def alter(self, tree):
        count = tree.count()
        logq = None if tree.logq is None else tree.logq[:, :count]
        return Tree(tree.tokens[:, :count], tree.parents[:, :count], None, tree.slots[:, :count], logq, tree.draws)


class StaleTopology(Altered):
    """Shares the topology of another tree."""

    def alter(self, tree):
        topology = topology_of(((-1, *([0] * (tree.shape[1] - 1))),), tree.tokens.device)
        return Tree(tree.tokens, tree.parents, tree.num_nodes, tree.slots, tree.logq, tree.draws, topology)


class MissingAsToken(Static):
    """Keeps -1 where the drafter had no candidate."""

    def _finish(self, tokens, slots, logq, draws, whole=False):
        topology = topology_of((self.shape.parents,), tokens.device)
        return Tree(tokens, topology.parents, None, slots, logq, draws)


class IgnoresDraws(Static):
    """Takes the best children where they should be drawn."""

    @hookimpl
    def build_tree(self, state, proposal):
        draws, state.draws = state.draws, "none"
        try:
            tree = super().build_tree(state, proposal)
        finally:
            state.draws = draws
        logq = proposal.logq(tree.slots.clamp(min=0))
        return Tree(tree.tokens, tree.parents, tree.num_nodes, tree.slots, logq, draws)


class TooDeep(Static):
    """Declares less depth than it builds."""

    def __init__(self, context=None):
        super().__init__(context)
        self.max_depth = 3


class TooMany(Static):
    """Declares fewer nodes than it builds."""

    def __init__(self, context=None):
        super().__init__(context)
        self.max_nodes = 12

    def _finish(self, tokens, slots, logq, draws, whole=False):
        self.max_nodes = 13
        tree = super()._finish(tokens, slots, logq, draws, whole)
        self.max_nodes = 12
        return tree


class TooManySlots(Static):
    """Has the drafter run more than it says: no room was made for that."""

    def __init__(self, context=None):
        super().__init__(context)
        self.max_slots -= 1


class NoChain(Static):
    """Declares a chain and branches."""

    def __init__(self, context=None):
        super().__init__(context)
        self.chain = True


class Unmarked(Static):
    """Overrides the hook without marking it."""

    def build_tree(self, state, proposal):
        raise AssertionError("never called")


TREE_BUILDERS = {
    SortedSiblings: "never dropped or re-ordered",
    DroppedChild: "never dropped or re-ordered",
    OnlyLikely: "that biases what is emitted",
    DropsUnlikelyLast: "that biases what is emitted",
    PicksByDraw: "depending on which token was drawn there as number 1",
    LooksAhead: "is not kept, but the tree depends on it",
    OwnRandomness: "not drawn by state.rng.draws",
    OtherLogq: "Tree.logq: row 0 is not what",
    SwappedSlots: "Tree.slots: node 1",
    ForgottenSlots: "was expanded, but has slot -1",
    WrongRoot: "node 0 must be the root",
    Shrinking: "declares capturable",
    StaleTopology: "Tree.topology is not that of Tree.parents",
    MissingAsToken: "Tree.tokens: expected token ids 0 to",
    IgnoresDraws: "not drawn by state.rng.draws",
    TooDeep: "declares max_depth 3, built depth 4",
    TooMany: "declares max_nodes 12, built 13",
    TooManySlots: "declares max_slots 5, used 6",
    NoChain: "declares chain",
    Unmarked: "exactly one implementation of build_tree",
}

# -- verifiers ----------------------------------------------------------------------------------------------------


class AcceptsPadding(TokenMatch):
    """Takes padding for nodes."""

    def accept(self, logp, tree, rng):
        return super().accept(logp, Tree(tree.tokens, tree.parents, None, tree.slots, tree.logq, tree.draws), rng)


class GreedyAcceptsPadding(Greedy):
    """The same at temperature 0."""

    def accept(self, logp, tree, rng):
        return super().accept(logp, Tree(tree.tokens, tree.parents, None, tree.slots, tree.logq, tree.draws), rng)


class Rejecting(WalkingVerifier):
    """Residual sampling without replacement, with one step to break in each subclass."""

    lossless = True
    needs_draft_probs = True
    draws = ("without_replacement",)

    def order(self, children, q, tokens):
        return children

    def ratio(self, p, q):
        return min(1.0, p / q) if q > 0 else float(p > 0)

    def residual(self, p, q):
        rest = (p - q).clamp(min=0)
        return rest / rest.sum() if rest.sum() > 0 else p

    def draft_left(self, q, token):
        q = q.clone()
        q[token] = 0
        return q / q.sum() if q.sum() > 0 else q

    def last(self, p, start, logp):
        return p

    def walk(self, logp, children, tree, row, rng):
        tokens, path = tree.tokens[row].tolist(), [0]
        while True:
            node = path[-1]
            start = p = logp[node].exp()
            q = tree.logq[row, node].exp().to(p.dtype)
            accepted = None
            for child in self.order(children[node], q, tokens):
                if self.accepts(p, q, tokens[child], rng):
                    accepted = child
                    break
                p, q = self.residual(p, q), self.draft_left(q, tokens[child])
            if accepted is None:
                return path, rng.categorical(self.last(p, start, logp))
            path.append(accepted)

    def accepts(self, p, q, token, rng):
        return rng.bernoulli(self.ratio(float(p[token]), float(q[token])))


class SortsSiblings(Rejecting):
    """STree's bias: siblings drawn in one order, judged in another."""

    def order(self, children, q, tokens):
        return sorted(children, key=lambda child: -float(q[tokens[child]]))


class ResidualNotNormalised(Rejecting):
    """The residual keeps its mass below 1, so that the next sibling is accepted too rarely."""

    def residual(self, p, q):
        rest = (p - q).clamp(min=0)
        return rest if rest.sum() > 0 else p


class DraftNotRenormalised(Rejecting):
    """Judges the second sibling by the distribution of the first (independent draws)."""

    def draft_left(self, q, token):
        return q


class BonusFromTarget(Rejecting):
    """Draws the bonus from the target instead of the residual."""

    def last(self, p, start, logp):
        return start


class BonusFromRoot(Rejecting):
    """Draws the bonus from the distribution after the root."""

    def last(self, p, start, logp):
        return logp[0].exp() if torch.equal(p, start) else p


class AcceptsByTarget(Rejecting):
    """Accepts with p instead of p / q."""

    def ratio(self, p, q):
        return p


class FormulaUnclipped(Rejecting):
    """Forgets the minimum."""

    def ratio(self, p, q):
        return p / q if q > 0 else float(p > 0)


class OtherRandomness(Rejecting):
    """Tosses a coin of its own."""

    def accepts(self, p, q, token, rng):
        return bool(torch.rand(()) < self.ratio(float(p[token]), float(q[token])))


class ChangesDraft(WithoutReplacement):
    """Works in place on what the tree carries."""

    def accept(self, logp, tree, rng):
        verdict = super().accept(logp, tree, rng)
        tree.logq[:, 0].exp_()
        return verdict


class ChangesScores(Greedy):
    """Works in place on the target's logits."""

    def accept(self, logp, tree, rng):
        verdict = super().accept(logp, tree, rng)
        logp[:, 0] = 0.0
        return verdict


class StopsEarly(Greedy):
    """Never accepts more than one token."""

    def accept(self, logp, tree, rng):
        verdict = super().accept(logp, tree, rng)
        if int(verdict.num_accepted[0]) < 2:
            return verdict
        node = verdict.path[:, 1]
        return Verdict(verdict.path[:, :2], torch.ones_like(node), logp[torch.arange(len(node)), node].argmax(-1))


class ForgetsRoot(Greedy):
    """Leaves the root out of the path."""

    def accept(self, logp, tree, rng):
        verdict = super().accept(logp, tree, rng)
        path = torch.cat([verdict.path[:, 1:], torch.full_like(verdict.path[:, :1], -1)], dim=1)
        return Verdict(path, verdict.num_accepted, verdict.bonus)


class CountsRoot(Greedy):
    """Counts the root among the accepted drafts."""

    def accept(self, logp, tree, rng):
        verdict = super().accept(logp, tree, rng)
        return Verdict(verdict.path, verdict.num_accepted + 1, verdict.bonus)


class Commits(Greedy):
    """Does the back-end's work as well."""

    @hookimpl
    def verify(self, state, tree):
        verdict = super().verify(state, tree)
        state.target._scored = tree
        state.target.commit(verdict.path)
        return verdict


class ClaimsTypical(Typical):
    """Calls a lossy rule lossless; the four below too."""

    lossless = True


class ClaimsGate(EntropyGate):
    lossless = True
    serves = ("sampling",)


class ClaimsOtherGate(ClaimsGate):
    def __init__(self, context=None):
        super().__init__(context, gate="probability", threshold=0.1, window_size=0)


class ClaimsCommonsense(Commonsense):
    lossless = True
    serves = ("sampling",)

    def __init__(self, context=None):
        super().__init__(toy_context(vocab_size=5), bigrams=toy_bigrams(5))  # the check has 3 to 5 tokens


class ClaimsGreedyCommonsense(ClaimsCommonsense):
    serves = ("greedy",)


class Overwrites(TokenMatch):
    """Writes the target's choice over the first child, as the common-sense verification of others does."""

    lossless = False

    def otherwise(self, scores, node, children, tokens, match):
        self.tokens[0, children[0]] = scores.argmax()
        return children[0]

    def accept(self, logp, tree, rng):
        self.tokens = tree.tokens
        return super().accept(logp, tree, rng)


class TraversalForOtherDraws(Traversal):
    """Judges draws without replacement as if they were independent."""

    draws = ("without_replacement",)

    def accept(self, logp, tree, rng):
        tree = Tree(tree.tokens, tree.parents, tree.num_nodes, tree.slots, tree.logq, "iid", tree.topology)
        return super().accept(logp, tree, rng)


class TraversalFromRoot(Traversal):
    """Judges siblings last drawn first."""

    def walk(self, logp, children, tree, row, rng):
        return super().walk(logp, [nodes[::-1] for nodes in children], tree, row, rng)


class BlockOfTwo(Block):
    """Takes what follows an accepted block from the target, where the draft went on."""

    def accept(self, logp, tree, rng):
        verdict = super().accept(logp, tree, rng)
        last = verdict.path.gather(1, verdict.num_accepted[:, None])[:, 0]
        rows = [rng.categorical(logp[row, node].exp()) for row, node in enumerate(last.tolist())]
        return Verdict(verdict.path, verdict.num_accepted, torch.tensor(rows))


class UndeclaredVerifier(Rejection):
    """Declares kinds of draws that nobody knows."""

    draws = ("sorted",)


class EntersEverySibling(MultiStep):
    """By noise, enters any sibling that would be accepted, and not the first one."""

    capturable = True

    def judge(self, logp, tree, *noise):
        chances, rest = self.chances(logp, tree)
        last = torch.arange(tree.shape[1]) * (noise[0] < chances)
        same = tree.parents[:, :, None] == tree.parents[:, None, :]
        enters = (noise[0] < chances) & (last == (same * last[:, None, :]).amax(-1))
        return followed(tree, enters, chosen(rest, noise[1]))


class OneNoiseForAll(TokenMatch):
    """By noise, draws at every node with the same numbers."""

    def noise(self, rng, shape, dtype):
        return (rng.noise((shape[0], 1, shape[2]), dtype).expand(shape),)


class JudgesOnHost(TokenMatch):
    """By noise, but looks whether anything was accepted."""

    capturable = True

    def judge(self, logp, tree, *noise):
        verdict = super().judge(logp, tree, *noise)
        return verdict if int(verdict.num_accepted.max()) >= 0 else None


VERIFIERS = {
    EntersEverySibling: "away from accept",
    OneNoiseForAll: "away from accept",
    JudgesOnHost: "reads a value on the host",
    AcceptsPadding: "is padding",
    GreedyAcceptsPadding: "is padding",
    SortsSiblings: "declared lossless",
    ResidualNotNormalised: "declared lossless",
    DraftNotRenormalised: "declared lossless",
    BonusFromTarget: "declared lossless",
    BonusFromRoot: "declared lossless",
    AcceptsByTarget: "declared lossless",
    FormulaUnclipped: "expected a probability in [0, 1]",
    OtherRandomness: "",
    ChangesDraft: "changed the tree in place",
    ChangesScores: "changed the target's logits in place",
    StopsEarly: "best tokens along the tree",
    ForgetsRoot: "expected the root",
    CountsRoot: "does not fit the path",
    Commits: "committed; that is the state back-end's part",
    ClaimsTypical: "declared lossless",
    ClaimsGate: "declared lossless",
    ClaimsOtherGate: "declared lossless",
    ClaimsCommonsense: "declared lossless",
    ClaimsGreedyCommonsense: "best tokens along the tree",
    Overwrites: "changed the tree in place",
    TraversalForOtherDraws: "declared lossless",
    TraversalFromRoot: "declared lossless",
    BlockOfTwo: "declared lossless",
    UndeclaredVerifier: "draws: expected some of",
}

# -- state back-ends ----------------------------------------------------------------------------------------------


class SkipsEmptyCommit(Replay):
    """Moves nothing when no drafted token was accepted: the root is lost."""

    def move(self, target, path):
        if int((path >= 0).sum()) > 1:
            super().move(target, path)


class UngatheredWindow(Replay):
    """Takes the conv window from the first nodes instead of the accepted ones."""

    def move(self, target, path):
        windows = [[layer.window.clone() for layer in stack.layers] for stack in target.stacks]
        super().move(target, path)
        count = int((path >= 0).sum())
        for stack, before, (inputs, _) in zip(target.stacks, windows, target.kept, strict=True):
            for layer, window, rows in zip(stack.layers, before, inputs, strict=True):
                joined = torch.cat([window, rows[:, :count].transpose(1, 2)], dim=-1)
                layer.window.copy_(joined[..., -stack.width :])


class LastIndex(StateCopy):
    """Selects the state of the D-th node instead of the path's last."""

    def move(self, target, path):
        count = int((path >= 0).sum())
        super().move(target, torch.arange(count)[None])


class ForgetsLastAccepted(Replay):
    """Stops one node before the end of the path."""

    def move(self, target, path):
        count = int((path >= 0).sum())
        super().move(target, path.clone().index_fill_(1, torch.tensor([max(count - 1, 1)]), -1) if count > 1 else path)


class KeepsWhat(Replay):
    """Asks scoring to keep what nobody knows."""

    keep = "everything"


class ScoresAndMoves(Replay):
    """Commits the root a second time after every step."""

    @hookimpl(tryfirst=True)
    def commit_state(self, state, tree, verdict):
        super().commit_state(state, tree, verdict)
        state.target.run_again(state.root)


STATES = {
    SkipsEmptyCommit: "accepted no drafted token",
    UngatheredWindow: "differ from sequential decoding",
    LastIndex: "differ from sequential decoding",
    ForgetsLastAccepted: "differ from sequential decoding",
    KeepsWhat: "keep: expected inputs, states or nothing",
    ScoresAndMoves: "differ from sequential decoding",
}

# -- drafters -----------------------------------------------------------------------------------------------------


def rule(prefix):
    return torch.randn(VOCAB, generator=numbers("draft", prefix))


class Sound(LiteralDrafter):
    """What the mutants are made of; it keeps the contract."""

    proposal = LiteralProposal

    def __init__(self, context=None):
        super().__init__(rule)

    @hookimpl
    def propose(self, state):
        return self.proposal(self.rule, state)


class SoundWithHistory(Sound):
    """Keeps its own history instead of reading the state's, as a model does."""

    @hookimpl
    def generation_started(self, state):
        self.seen = list(state.history[0])

    @hookimpl
    def propose(self, state):
        proposal = self.proposal(self.rule, state)
        proposal._before = [tuple(self.seen)]
        return proposal

    @hookimpl
    def commit_state(self, state, tree, verdict):
        nodes = [node for node in verdict.path[0].tolist() if node > 0]
        self.seen += [int(tree.tokens[0, node]) for node in self.kept(nodes, tree)]
        self.seen.append(int(verdict.bonus))

    def kept(self, nodes, tree):
        return nodes


class IgnoresRoot(SoundWithHistory):
    """Never looks at the last committed token."""

    @hookimpl
    def propose(self, state):
        proposal = super().propose(state)
        proposal._before = [tuple(self.seen[:-1])]
        return proposal


class SkipsUnexpanded(SoundWithHistory):
    """Loses an accepted token that it has not run."""

    def kept(self, nodes, tree):
        return [node for node in nodes if int(tree.slots[0, node]) >= 0]


class SkipsEmptyStep(SoundWithHistory):
    """Does not move when no drafted token was accepted."""

    @hookimpl
    def commit_state(self, state, tree, verdict):
        if int(verdict.num_accepted) > 0:
            super().commit_state(state, tree, verdict)


class RemembersGeneration(SoundWithHistory):
    """Does not forget the last prompt."""

    def __init__(self, context=None):
        super().__init__(context)
        self.seen = []

    @hookimpl
    def generation_started(self, state):
        self.seen += state.history[0]


class Noisy(Sound):
    """Draws where it should only tell."""

    class proposal(LiteralProposal):  # noqa: N801
        def distribution(self, row, path):
            return (super().distribution(row, path) + 0.1 * torch.randn(VOCAB)).log_softmax(-1)


class WorstFirst(Sound):
    """Gives candidates in the wrong order."""

    class proposal(LiteralProposal):  # noqa: N801
        def topk(self, slots, k):
            tokens, logq = super().topk(slots, k)
            return tokens.flip(-1), logq.flip(-1)


class MissesBest(Sound):
    """Leaves the best candidate out."""

    class proposal(LiteralProposal):  # noqa: N801
        def topk(self, slots, k):
            tokens, logq = super().topk(slots, k + 1)
            return tokens[..., 1:], logq[..., 1:]


class RawLogits(Sound):
    """Gives logits for log-probabilities."""

    class proposal(LiteralProposal):  # noqa: N801
        def distribution(self, row, path):
            return super().distribution(row, path) - 1.0


class Unprocessed(Sound):
    """Does not cut its distribution as the target's is cut."""

    class proposal(LiteralProposal):  # noqa: N801
        def distribution(self, row, path):
            return self._rule(self._before[row] + path).log_softmax(-1)


class MissingWithProbability(Sound):
    """Has no candidate, but a probability for it."""

    class proposal(LiteralProposal):  # noqa: N801
        def topk(self, slots, k):
            tokens, logq = super().topk(slots, k)
            return torch.full_like(tokens, -1), logq


class OutsideVocabulary(Sound):
    """Gives ids of another vocabulary."""

    class proposal(LiteralProposal):  # noqa: N801
        def topk(self, slots, k):
            tokens, logq = super().topk(slots, k)
            return tokens + VOCAB, logq


class HalfPrecision(Sound):
    """Gives bfloat16."""

    class proposal(LiteralProposal):  # noqa: N801
        def topk(self, slots, k):
            tokens, logq = super().topk(slots, k)
            return tokens, logq.bfloat16()


class ExpandsRoot(Sound):
    """Runs every token as a child of the root."""

    class proposal(LiteralProposal):  # noqa: N801
        def expand(self, slots, tokens):
            return super().expand(torch.zeros_like(slots), tokens)


class ExpandsInPlace(Sound):
    """Writes new slots over its arguments."""

    class proposal(LiteralProposal):  # noqa: N801
        def expand(self, slots, tokens):
            return slots.copy_(super().expand(slots, tokens))


class Rewrites(Sound):
    """Changes what was said."""

    @hookimpl
    def commit_state(self, state, tree, verdict):
        state.history[0][0] = 0


class NoProposal(Sound):
    """Returns something else."""

    @hookimpl
    def propose(self, state):
        return rule(())


DRAFTERS = {
    IgnoresRoot: "makes no difference",
    SkipsUnexpanded: "must be conditioned on all committed tokens",
    SkipsEmptyStep: "after step 1, which accepted [0]",
    RemembersGeneration: "forgets the last generation",
    Noisy: "",
    WorstFirst: "expected the best first",
    MissesBest: "leaves out better candidates",
    RawLogits: "expected normalised log-probabilities",
    Unprocessed: "go through state.pipeline",
    MissingWithProbability: "a missing candidate (-1) has log-probability -inf",
    OutsideVocabulary: "expected tokens of the target's vocabulary",
    HalfPrecision: "expected float32 or float64, got torch.bfloat16",
    ExpandsRoot: "at an expanded slot",
    ExpandsInPlace: "expand changed its arguments",
    Rewrites: "changed state.history",
    NoProposal: "without the members of Proposal",
}

# -- observers ----------------------------------------------------------------------------------------------------


class Observer:
    """Base: takes the context that factories get."""

    def __init__(self, context=None):
        pass


class UsesRandomness(Observer):
    """Draws from the generation's own source."""

    @hookimpl
    def step_finished(self, state):
        state.rng.bernoulli(0.5)


class EndsEarly(Observer):
    """Interferes with when it stops."""

    @hookimpl
    def step_finished(self, state):
        state.done = [True]


class Proposes(Observer):
    """Does a drafter's work."""

    @hookimpl
    def propose(self, state):
        return None


class UnknownEvent(Observer):
    """Waits for an event that never comes."""

    @hookimpl
    def token_emitted(self, state):
        return None


OBSERVERS = {
    UsesRandomness: "the tokens differ when it watches",
    EndsEarly: "differ when it watches",
    Proposes: "exactly one implementation of propose",
    UnknownEvent: "token_emitted",
}
