"""What goes in and what comes out: references and seeds, exports, the card."""
