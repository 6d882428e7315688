//! What goes into a route and comes out of it: the handlers' own types, as makers of their schemas.

use schemars::{Schema, SchemaGenerator};

/// Makes a type's schema.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A server-sent event: its name, and the type of its data.
pub type Sent = (&'static str, SchemaOf);

/// The body of a request.
#[derive(Clone, Copy, Debug)]
pub enum RequestBody {
    /// None, or one that nobody looks at.
    Nothing,
    /// A JSON document of this type.
    Json(SchemaOf),
    /// A tar archive.
    Octets,
}

/// What a route answers where all is well.
#[derive(Clone, Copy, Debug)]
pub enum ResponseBody {
    /// A JSON document of this type.
    Json(SchemaOf),
    /// A page of a list of this type ([`crate::page`]).
    List(SchemaOf),
    /// Server-sent events of these names and types.
    Events(&'static [Sent]),
    /// The connection becomes a stream of bytes both ways.
    Upgrade,
    /// Bytes as they lie there.
    Octets,
    /// OpenMetrics text.
    Metrics,
    /// The description of the API.
    Document,
}

/// What goes into a route, and what comes out of it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The body of its requests.
    pub takes: RequestBody,
    /// The parameters after the `?`, an object's fields.
    pub query: Option<SchemaOf>,
    /// What it answers where all is well.
    pub gives: ResponseBody,
}
