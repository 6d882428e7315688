//! The HTTP API: routes, wire types and the client
