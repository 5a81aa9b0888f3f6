"""The engine: values, rules, trees, chains. Nothing here knows an algorithm."""
