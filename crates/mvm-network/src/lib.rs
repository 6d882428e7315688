//! Bridges, taps, addresses and the firewall
