"""Pictures of trees: one layout, drawn as SVG or PNG, and box-drawing characters for a terminal."""
