"""How a request is carried out: the model, its stages, where its networks are and what they cost."""
