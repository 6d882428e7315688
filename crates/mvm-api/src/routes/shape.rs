//! What goes into a route and comes out of it: the handlers' own types, as makers of their schemas.

use super::Route;
use crate::Problem;
use crate::page::Listed;
use crate::types::ProgressEvent;
use schemars::{JsonSchema, Schema, SchemaGenerator};

/// Makes a type's schema.
pub type Maker = fn(&mut SchemaGenerator) -> Schema;

/// A server-sent event: its name, and the type of its data.
pub type Sent = (&'static str, Maker);

/// The body of a request.
#[derive(Clone, Copy, Debug)]
pub enum Takes {
    /// None, or one that nobody looks at.
    Nothing,
    /// A JSON document of this type.
    Json(Maker),
    /// A tar archive.
    Octets,
}

/// What a route answers where all is well.
#[derive(Clone, Copy, Debug)]
pub enum Gives {
    /// A JSON document of this type.
    Json(Maker),
    /// A page of a list of this type ([`crate::page`]).
    List(Maker),
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
    pub takes: Takes,
    /// The parameters after the `?`, an object's fields.
    pub query: Option<Maker>,
    /// What it answers where all is well.
    pub gives: Gives,
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
        Route { shape: Shape { takes: Takes::Json(schema_of::<T>), ..self.shape }, ..self }
    }

    pub(super) const fn takes_octets(self) -> Route {
        Route { shape: Shape { takes: Takes::Octets, ..self.shape }, ..self }
    }

    pub(super) const fn query<T: JsonSchema>(self) -> Route {
        Route { shape: Shape { query: Some(whole::<T>), ..self.shape }, ..self }
    }

    pub(super) const fn gives<T: JsonSchema>(self) -> Route {
        Route { shape: Shape { gives: Gives::Json(schema_of::<T>), ..self.shape }, ..self }
    }

    pub(super) const fn lists<T: JsonSchema + Listed>(self) -> Route {
        Route { shape: Shape { gives: Gives::List(schema_of::<Vec<T>>), ..self.shape }, ..self }
    }

    pub(super) const fn routine(self) -> Route {
        Route { routine: true, ..self }
    }

    pub(super) const fn once(self) -> Route {
        Route { once: true, ..self }
    }

    pub(super) const fn streams(self, events: &'static [Sent]) -> Route {
        Route { shape: Shape { gives: Gives::Events(events), ..self.shape }, ..self }
    }

    /// What takes long: its progress, and then its result, or why there is none.
    pub(super) const fn reports<T: JsonSchema>(self) -> Route {
        self.streams(
            const {
                &[
                    ("progress", schema_of::<ProgressEvent> as Maker),
                    ("result", schema_of::<T>),
                    ("problem", schema_of::<Problem>),
                ]
            },
        )
    }

    pub(super) const fn upgrades(self) -> Route {
        Route { shape: Shape { gives: Gives::Upgrade, ..self.shape }, ..self }
    }

    pub(super) const fn octets(self) -> Route {
        Route { shape: Shape { gives: Gives::Octets, ..self.shape }, ..self }
    }

    pub(super) const fn metrics(self) -> Route {
        Route { shape: Shape { gives: Gives::Metrics, ..self.shape }, ..self }
    }

    pub(super) const fn document(self) -> Route {
        Route { shape: Shape { gives: Gives::Document, ..self.shape }, ..self }
    }
}
