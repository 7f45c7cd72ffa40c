"""An embedded recognition task, with its trained model, to try the tool offline."""
