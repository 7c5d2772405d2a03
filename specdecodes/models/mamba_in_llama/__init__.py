"""MambaInLlama: Llama whose attention layers, all or some, have become Mamba-2 (Wang et al. 2024, arXiv 2408.15237).

Importing this package tells transformers about it: ``AutoConfig`` and ``AutoModelForCausalLM`` then know the family
``mamba_in_llama``. Published checkpoints call themselves ``llama`` and keep the rest in ``mamba_config.json``;
:class:`MILConfig` reads both, and what ``save_pretrained`` writes is an ordinary checkpoint of the family.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from specdecodes.models.mamba_in_llama.configuration import MAMBA_FILE, MILConfig
from specdecodes.models.mamba_in_llama.modeling import MILForCausalLM, MILModel

AutoConfig.register(MILConfig.model_type, MILConfig, exist_ok=True)
AutoModelForCausalLM.register(MILConfig, MILForCausalLM, exist_ok=True)

__all__ = ["MAMBA_FILE", "MILConfig", "MILForCausalLM", "MILModel"]
