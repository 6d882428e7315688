//! Constructors of the table's rows.

use super::route::Route;
use super::shape::{RequestBody, ResponseBody, SchemaOf, Sent, Shape};
use crate::Problem;
use crate::page::Listed;
use crate::types::ProgressEvent;
use schemars::{JsonSchema, Schema, SchemaGenerator};

/// Returns a reference to the type's schema.
pub fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Returns the type's whole schema. Its properties are the query parameters.
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

    /// The route streams progress, then its result or a problem.
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
