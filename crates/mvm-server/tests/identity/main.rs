//! Identities: authorities, tokens, mutual TLS and the table of routes, with real keys, stores and
//! connections.

mod handshakes;
mod several;
mod signing;
mod support;
mod table;
