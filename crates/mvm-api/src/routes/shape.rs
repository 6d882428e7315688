//! What goes into a route and comes out of it: the handlers' own types, as makers of their schemas.

use super::Route;
use crate::Problem;
use crate::page::Listed;
use crate::types::ProgressEvent;
use schemars::{JsonSchema, Schema, SchemaGenerator};

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

/// A reference to the type's schema.
pub fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The whole schema: query parameters are its properties.
fn whole<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

impl Route {
    pub(super) const fn takes<T: JsonSchema>(self) -> Route {
        Route { shape: Shape { takes: RequestBody::Json(schema_of::<T>), ..self.shape }, ..self }
    }

    pub(super) const fn takes_octets(self) -> Route {
        Route { shape: Shape { takes: RequestBody::Octets, ..self.shape }, ..self }
    }

    pub(super) const fn query<T: JsonSchema>(self) -> Route {
        Route { shape: Shape { query: Some(whole::<T>), ..self.shape }, ..self }
    }

    pub(super) const fn gives<T: JsonSchema>(self) -> Route {
        Route { shape: Shape { gives: ResponseBody::Json(schema_of::<T>), ..self.shape }, ..self }
    }

    pub(super) const fn lists<T: JsonSchema + Listed>(self) -> Route {
        Route {
            shape: Shape { gives: ResponseBody::List(schema_of::<Vec<T>>), ..self.shape },
            ..self
        }
    }

    pub(super) const fn routine(self) -> Route {
        Route { routine: true, ..self }
    }

    pub(super) const fn once(self) -> Route {
        Route { once: true, ..self }
    }

    pub(super) const fn streams(self, events: &'static [Sent]) -> Route {
        Route { shape: Shape { gives: ResponseBody::Events(events), ..self.shape }, ..self }
    }

    /// What takes long: its progress, and then its result, or why there is none.
    pub(super) const fn reports<T: JsonSchema>(self) -> Route {
        self.streams(
            const {
                &[
                    ("progress", schema_of::<ProgressEvent> as SchemaOf),
                    ("result", schema_of::<T>),
                    ("problem", schema_of::<Problem>),
                ]
            },
        )
    }

    pub(super) const fn upgrades(self) -> Route {
        Route { shape: Shape { gives: ResponseBody::Upgrade, ..self.shape }, ..self }
    }

    pub(super) const fn octets(self) -> Route {
        Route { shape: Shape { gives: ResponseBody::Octets, ..self.shape }, ..self }
    }

    pub(super) const fn metrics(self) -> Route {
        Route { shape: Shape { gives: ResponseBody::Metrics, ..self.shape }, ..self }
    }

    pub(super) const fn document(self) -> Route {
        Route { shape: Shape { gives: ResponseBody::Document, ..self.shape }, ..self }
    }
}
