"""The papers' formulas, written plainly in float64 on flattened vectors, to compare the engine with."""
