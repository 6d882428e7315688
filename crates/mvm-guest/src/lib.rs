//! The guest protocol, and PID 1 and the agent inside every guest
