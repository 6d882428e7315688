//! The OpenAPI 3.1 description of the API. It is made of the table of routes and of the handlers'
//! own types, so it cannot differ from them.

use crate::identity::Role;
use crate::page::{LONGEST, MOST};
use crate::problem::{self, Problem};
use crate::routes::{ROUTES, RequestBody, ResponseBody, Route, Server};
use mvm_model::{InstanceId, JobId, Name};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// The media type of OpenMetrics text.
const METRICS: &str = "application/openmetrics-text";
/// The path of shared schemas inside the description.
const SHARED: &str = "/components/schemas";

/// The servers, each of which describes its own routes.
const EVERY: [Server; 3] = [Server::Agent, Server::Coordinator, Server::Signer];

/// Returns the description of a server's routes; of all routes where `server` is `None`.
pub fn describe(server: Option<Server>) -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = SHARED.into());
    let mut generator = settings.into_generator();
    let mut paths: Map<String, Value> = Map::new();
    let served = |route: &&Route| server.is_none_or(|server| route.is_of(server));
    for route in ROUTES.iter().filter(served) {
        let shown = operation(route, &mut generator);
        let methods = paths.entry(route.path).or_insert_with(|| json!({}));
        methods[route.method.to_lowercase()] = shown;
    }
    let problem = reference::<Problem>(&mut generator);
    json!({
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "mvm",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Fleets of microVMs, ready to work",
            "description": "Memory and disks are MiB, times are milliseconds since the Unix epoch, \
                durations say their unit in their name. Every refusal is a problem document (RFC \
                9457) with a stable code.",
            "license": { "name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE") },
        },
        "servers": [{
            "url": "https://{address}",
            "description": "Over mutual TLS; on the machine itself, over the Unix socket agent.sock \
                in the state directory",
            "variables": { "address": { "default": "localhost:4433" } },
        }],
        "security": [{ "mutualTLS": [] }],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "mutualTLS": {
                "type": "mutualTLS",
                "description": "A certificate of the fleet's authority, whose URI SAN names a role \
                    and who holds it. Over the Unix socket the caller's uid counts.",
            }},
            "parameters": shared_parameters(),
            "headers": { "Link": {
                "description": "Where the next page is, if there is one: <PATH>; rel=\"next\" (RFC 8288)",
                "schema": { "type": "string" },
            }},
            "responses": { "Problem": {
                "description": "A refusal or a failure",
                "content": { problem::MEDIA_TYPE: { "schema": problem } },
            }},
        },
    })
}

/// The query parameters of every list.
const PAGE: [&str; 2] = ["limit", "after"];

fn shared_parameters() -> Value {
    let [limit, after] = PAGE;
    json!({
        limit: {
            "name": limit, "in": "query",
            "description": format!("How many items a page has at most; {MOST} where none is given"),
            "schema": { "type": "integer", "minimum": 1, "maximum": MOST },
        },
        after: {
            "name": after, "in": "query",
            "description": "A cursor from the Link of the page before",
            "schema": {
                "type": "string", "pattern": format!("^[A-Za-z0-9_-]{{1,{LONGEST}}}$"),
            },
        },
        "key": {
            "name": "Idempotency-Key", "in": "header",
            "description": "The same caller's same key is answered as the first time, for a day",
            "schema": { "type": "string", "pattern": "^[!-~]{1,255}$" },
        },
    })
}

fn reference<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let (noun, _) = route.operation.split_once('.').unwrap_or_default();
    let roles: Vec<&str> = route.access.roles.iter().copied().map(Role::as_str).collect();
    let served = EVERY.iter().filter(|server| route.is_of(**server));
    let servers: Vec<String> = served.map(|server| format!("{server:?}").to_lowercase()).collect();
    let mut parameters = in_path(route, generator);
    parameters.extend(in_query(route, generator));
    if matches!(route.shape.gives, ResponseBody::List(_)) {
        parameters
            .extend(PAGE.map(|name| json!({ "$ref": format!("#/components/parameters/{name}") })));
    }
    if route.once {
        parameters.push(json!({ "$ref": "#/components/parameters/key" }));
    }
    let mut shown = json!({
        "operationId": route.operation,
        "summary": route.summary,
        "tags": [noun],
        "x-mvm-roles": roles,
        "x-mvm-servers": servers,
        "responses": responses(route, generator),
    });
    if !parameters.is_empty() {
        shown["parameters"] = parameters.into();
    }
    if let Some(body) = body(route, generator) {
        shown["requestBody"] = body;
    }
    shown
}

fn body(route: &Route, generator: &mut SchemaGenerator) -> Option<Value> {
    let content = match route.shape.takes {
        RequestBody::Nothing => return None,
        RequestBody::Json(schema) => json!({ "application/json": { "schema": schema(generator) } }),
        RequestBody::Octets => json!({ "application/x-tar": {} }),
    };
    Some(json!({ "required": true, "content": content }))
}

fn responses(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let (status, description, content) = match route.shape.gives {
        ResponseBody::Json(schema) => {
            ("200", "Done", json!({ "application/json": { "schema": schema(generator) } }))
        }
        ResponseBody::List(schema) => (
            "200",
            "A page of the list",
            json!({ "application/json": { "schema": schema(generator) } }),
        ),
        ResponseBody::Events(events) => {
            let each = events
                .iter()
                .map(|(name, schema)| ((*name).to_owned(), schema(generator).to_value()));
            let each: Map<String, Value> = each.collect();
            let events = json!({ "schema": { "type": "string" }, "x-mvm-events": each });
            (
                "200",
                "Server-sent events; their data is JSON",
                json!({ "text/event-stream": events }),
            )
        }
        ResponseBody::Upgrade => {
            ("101", "A stream of bytes both ways: Upgrade: mvm-stream", Value::Null)
        }
        ResponseBody::Octets => ("200", "Bytes", json!({ "application/octet-stream": {} })),
        ResponseBody::Metrics => {
            ("200", "Metrics", json!({ METRICS: { "schema": { "type": "string" } } }))
        }
        ResponseBody::Document => {
            let schema =
                json!({ "schema": { "type": "object", "required": ["openapi", "paths"] } });
            ("200", "This document", json!({ "application/json": schema }))
        }
    };
    let mut fine = json!({ "description": description });
    if !content.is_null() {
        fine["content"] = content;
    }
    if matches!(route.shape.gives, ResponseBody::List(_)) {
        fine["headers"] = json!({ "Link": { "$ref": "#/components/headers/Link" } });
    }
    json!({ status: fine, "default": { "$ref": "#/components/responses/Problem" } })
}

/// Returns the path parameters, written `{in braces}`, in their order.
fn in_path(route: &Route, generator: &mut SchemaGenerator) -> Vec<Value> {
    let parts: Vec<&str> = route.path.split('/').collect();
    let named = parts.windows(2).filter_map(|pair| {
        let name = pair[1].strip_prefix('{')?.strip_suffix('}')?;
        let schema = match (pair[0], name) {
            (_, "tenant" | "pool" | "node") => reference::<Name>(generator),
            ("instances", _) => reference::<InstanceId>(generator),
            ("jobs", _) => reference::<JobId>(generator),
            ("leases", _) => json!({ "type": "string", "pattern": "^l-([0-9a-f]{8}){1,2}$" }),
            ("claims", _) => json!({ "type": "string", "pattern": "^l-[0-9a-f]{16}$" }),
            (_, "index") => json!({ "type": "integer", "minimum": 0, "maximum": 63 }),
            _ => json!({ "type": "string", "pattern": "^[a-z0-9_@-]{1,96}$" }),
        };
        Some(json!({ "name": name, "in": "path", "required": true, "schema": schema }))
    });
    named.collect()
}

fn in_query(route: &Route, generator: &mut SchemaGenerator) -> Vec<Value> {
    let Some(query) = route.shape.query else { return Vec::new() };
    let schema = query(generator).to_value();
    let fields = schema["properties"].as_object().cloned().unwrap_or_default();
    let shown = fields.into_iter().map(|(name, mut schema)| {
        let description = schema.as_object_mut().and_then(|fields| fields.remove("description"));
        let mut shown = json!({ "name": name, "in": "query", "schema": not_null(schema) });
        if let Some(description) = description {
            shown["description"] = description;
        }
        shown
    });
    shown.collect()
}

/// Removes `null` from a parameter's types: a parameter that is not given is absent, not null.
fn not_null(mut schema: Value) -> Value {
    if let Some(types) = schema["type"].as_array() {
        schema["type"] = types.iter().find(|one| *one != "null").cloned().unwrap_or_default();
    }
    let one = schema["anyOf"].as_array().and_then(|any| any.iter().find(|s| s["type"] != "null"));
    if let Some(one) = one {
        return one.clone();
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");

    #[test]
    fn the_description_that_is_shipped_is_that_of_the_table() {
        let made = format!("{:#}\n", describe(None));
        if std::env::var_os("MVM_WRITE_OPENAPI").is_some() {
            std::fs::write(SHIPPED, &made).expect("written");
        }
        let shipped = std::fs::read_to_string(SHIPPED).expect("read");
        assert!(made == shipped, "write it again: MVM_WRITE_OPENAPI=1 cargo test -p mvm-api");
    }

    /// Collects all `$ref`s below a value.
    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|field| references(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_server_s_description_is_whole() {
        for server in [None, Some(Server::Agent), Some(Server::Coordinator), Some(Server::Signer)] {
            let document = describe(server);
            let mut found = BTreeSet::new();
            references(&document, &mut found);
            for reference in found {
                let at = document.pointer(reference.trim_start_matches('#'));
                assert!(at.is_some(), "{server:?}: {reference} is nowhere");
            }
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_its_parameters() {
        let mut names = BTreeSet::new();
        for route in ROUTES {
            assert!(names.insert(route.operation), "{} stands twice", route.operation);
            let shown = &describe(None)["paths"][route.path][route.method.to_lowercase()];
            assert_eq!(shown["operationId"], route.operation);
            let in_path = shown["parameters"].as_array().into_iter().flatten();
            let in_path = in_path.filter(|p| p["in"] == "path").count();
            // Only lists are arrays, and every list has pages.
            let array = &shown["responses"]["200"]["content"]["application/json"]["schema"];
            let list = matches!(route.shape.gives, ResponseBody::List(_));
            assert!(route.method != "GET" || list == (array["type"] == "array"), "{}", route.path);
            assert_eq!(list, shown["responses"]["200"]["headers"]["Link"].is_object());
            assert_eq!(in_path, route.path.matches('{').count(), "{}", route.path);
            let known = route.shape.query.map_or(0, |_| 1);
            let asked = shown["parameters"].as_array().into_iter().flatten();
            assert!(asked.filter(|p| p["in"] == "query").count() >= known, "{}", route.path);
        }
    }
}
