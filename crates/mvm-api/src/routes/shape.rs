//! The types of a route's request and response, as functions that make their schemas.

use schemars::{Schema, SchemaGenerator};

/// Makes a type's schema.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A server-sent event: its name, and the type of its data.
pub type Sent = (&'static str, SchemaOf);

/// The body of a request.
#[derive(Clone, Copy, Debug)]
pub enum RequestBody {
    /// No body, or one that is ignored.
    Nothing,
    /// A JSON document of this type.
    Json(SchemaOf),
    /// A tar archive.
    Octets,
}

/// The response of a successful call.
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
    /// The bytes of a file.
    Octets,
    /// OpenMetrics text.
    Metrics,
    /// The description of the API.
    Document,
}

/// The types of a route's request and response.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The request's body.
    pub takes: RequestBody,
    /// The query parameters: the fields of an object.
    pub query: Option<SchemaOf>,
    /// The response of a successful call.
    pub gives: ResponseBody,
}
