"""How the whole industry grows: tables of dated facts, growth models with intervals, and what they cannot say."""
