"""What every command says and draws; it knows no agent."""
