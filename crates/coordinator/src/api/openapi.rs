//! The OpenAPI document of version 2, made from the table that the router is made from.
//!
//! Bodies are decoded by Go's rules, which no derived schema describes, so the table has them as
//! JSON Schema; `tests/clients.rs` lets schemathesis hold every answer against it.

use crate::core::Coordinator;
use axum::Router;
use axum::routing::MethodRouter;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// A path with its handlers, and what they are told and tell.
pub struct Route {
    path: &'static str,
    handler: MethodRouter<Arc<Coordinator>>,
    operations: Vec<(&'static str, Operation)>,
}

/// One method of a path.
pub struct Operation {
    summary: &'static str,
    query: Option<Value>,
    body: Option<Value>,
    data: Value,
    needs_certificate: bool,
}

pub fn route(path: &'static str, handler: MethodRouter<Arc<Coordinator>>) -> Route {
    Route {
        path,
        handler,
        operations: Vec::new(),
    }
}

impl Route {
    pub fn get(self, operation: Operation) -> Route {
        self.with("get", operation)
    }

    pub fn post(self, operation: Operation) -> Route {
        self.with("post", operation)
    }

    pub fn delete(self, operation: Operation) -> Route {
        self.with("delete", operation)
    }

    fn with(mut self, method: &'static str, operation: Operation) -> Route {
        self.operations.push((method, operation));
        self
    }
}

/// An operation whose answer has this data.
pub fn tells(summary: &'static str, data: Value) -> Operation {
    Operation {
        summary,
        query: None,
        body: None,
        data,
        needs_certificate: false,
    }
}

impl Operation {
    /// With a body.
    pub fn takes(mut self, body: Value) -> Operation {
        self.body = Some(body);
        self
    }

    /// With a parameter in the query.
    pub fn asks(mut self, name: &str, is_required: bool, schema: Value) -> Operation {
        self.query = Some(json!({
            "name": name, "in": "query", "required": is_required, "schema": schema,
        }));
        self
    }

    /// For holders of certificates: users, or marbles.
    pub fn certified(mut self) -> Operation {
        self.needs_certificate = true;
        self
    }

    fn document(&self, parameters: &[Value]) -> Value {
        let envelope = |status: Value, data: &Value| {
            json!({
                "type": "object",
                "required": ["status", "data"],
                "properties": {"status": status, "data": data, "message": {"type": "string"}},
            })
        };
        let answer = |description: &str, schema: Value| {
            json!({
                "description": description,
                "content": {"application/json": {"schema": schema}},
            })
        };
        let null = json!({"type": "null"});
        let failed = |description| {
            let status = json!({"enum": ["fail", "error"]});
            answer(description, envelope(status, &null))
        };
        let mut document = json!({
            "summary": self.summary,
            "responses": {
                "200": answer("Done.", envelope(json!({"const": "success"}), &self.data)),
                "400": failed("The request is malformed."),
                "401": failed("The sender may not."),
                "403": failed("The manifest does not allow it."),
                "404": failed("There is no such thing for the sender."),
                "409": failed("Other replicas were faster, again and again: try again."),
                "429": failed("Too many requests from this address."),
                "500": failed("It cannot be done, for the reason in `message`."),
            },
        });
        let mut all = parameters.to_vec();
        all.extend(self.query.clone());
        if !all.is_empty() {
            document["parameters"] = all.into();
        }
        if let Some(body) = &self.body {
            document["requestBody"] = json!({
                "required": true,
                "content": {"application/json": {"schema": body}},
            });
        }
        if self.needs_certificate {
            document["security"] = json!([{"certificate": []}]);
        }
        document
    }
}

pub fn router(routes: Vec<Route>) -> Router<Arc<Coordinator>> {
    routes.into_iter().fold(Router::new(), |router, route| {
        router.route(route.path, route.handler)
    })
}

/// The document: every path for the default namespace, and again below `/namespaces/{name}`.
pub fn document(routes: &[Route], of_cluster: &[Route]) -> Value {
    let name = json!({
        "name": "name", "in": "path", "required": true, "schema": {"type": "string"},
        "description": "a namespace",
    });
    let mut paths = Map::new();
    for (prefix, parameters, routes) in [
        ("", &[][..], routes),
        ("/namespaces/{name}", std::slice::from_ref(&name), routes),
        ("", &[][..], of_cluster),
    ] {
        for route in routes {
            let parameters = match route.path.contains("{name}") {
                true => std::slice::from_ref(&name),
                false => parameters,
            };
            let item: Map<String, Value> = route
                .operations
                .iter()
                .map(|(method, operation)| ((*method).to_owned(), operation.document(parameters)))
                .collect();
            paths.insert(format!("{prefix}{}", route.path), item.into());
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Bulla coordinator", "version": env!("CARGO_PKG_VERSION"),
            "description": "One manifest for a cluster of verified services. Clients should verify \
                the coordinator's quote first, and pin its root certificate.",
        },
        "servers": [{"url": "/api/v2"}],
        "paths": paths,
        "components": {"securitySchemes": {"certificate": {
            "type": "mutualTLS",
            "description": "the certificate of a user in the manifest, or of a marble",
        }}},
    })
}

pub fn text() -> Value {
    json!({"type": "string"})
}

/// Bytes in base64.
pub fn bytes() -> Value {
    json!({"type": "string", "contentEncoding": "base64"})
}

pub fn number() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": u64::MAX})
}

pub fn null() -> Value {
    json!({"type": "null"})
}

/// A schema, or null.
pub fn nullable(schema: Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

pub fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

/// Names that are not known beforehand.
pub fn map(values: Value) -> Value {
    json!({"type": "object", "additionalProperties": values})
}

/// An object that has all of these.
pub fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    with_optional(fields, [])
}

/// An object that has all of the first, and may have the second.
pub fn with_optional<const N: usize, const M: usize>(
    fields: [(&str, Value); N],
    optional: [(&str, Value); M],
) -> Value {
    let required: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let properties: Map<String, Value> = fields
        .into_iter()
        .chain(optional)
        .map(|(name, schema)| (name.to_owned(), schema))
        .collect();
    json!({"type": "object", "required": required, "properties": properties})
}

/// A body by Go's rules: any field may be missing or null, and others are ignored.
pub fn body<const N: usize>(fields: [(&str, Value); N]) -> Value {
    with_optional([], fields.map(|(name, schema)| (name, nullable(schema))))
}
