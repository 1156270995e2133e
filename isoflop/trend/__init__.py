"""How the whole industry grows: dated facts, growth models with intervals, and what they cannot say."""
