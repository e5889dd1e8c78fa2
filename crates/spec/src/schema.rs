//! Published schemas, made from the tables: a mode's input and output, and fal's per-endpoint OpenAPI document.
//!
//! Source: the shape of fal's own documents (`/api/openapi/queue/openapi.json`): OpenAPI 3.0.4, order of properties in
//! `x-fal-order-properties`, null as an `anyOf` alternative, component names made from the endpoint id.

use crate::field::{Field, Kind};
use crate::mode::Mode;
use serde_json::{Map, Value, json};

/// Schema of a mode's request body. Validation items are a reference to the component named by `mode.preview.item`.
pub fn input_schema(mode: &Mode) -> Value {
    let properties = mode.fields().map(|field| {
        let mut schema = property(field, Some(mode));
        if let Some(default) = field.default.value() {
            schema.insert("default".to_owned(), default);
        }
        (field, schema)
    });
    object(&name(mode, "Input"), properties)
}

/// Schema of one of a mode's validation items.
pub fn item_schema(mode: &Mode) -> Value {
    object(mode.preview.item, mode.preview.needs.iter().map(|field| (field, property(field, None))))
}

/// Schema of a mode's result: the same for all modes.
pub fn output_schema(mode: &Mode) -> Value {
    let files = [
        (
            "video",
            "Video",
            "Preview of all validation items in one video; on modes that make video, when there are validation items.",
        ),
        (
            "audio",
            "Audio",
            "Preview of all validation items in one sound file; on modes that make only sound, when there are validation items.",
        ),
        ("lora_file", "LoRA File", "The trained LoRA weights (.safetensors)."),
        ("config_file", "Config File", "Settings for inference with the LoRA."),
        ("debug_dataset", "Debug Dataset", "The prepared training data; when debug_dataset was set."),
    ];
    let properties: Map<String, Value> = files
        .into_iter()
        .map(|(file, title, text)| {
            let schema = json!({ "title": title, "description": text, "allOf": [reference("File")] });
            (file.to_owned(), schema)
        })
        .collect();
    json!({
        "title": name(mode, "Output"),
        "type": "object",
        "x-fal-order-properties": properties.keys().collect::<Vec<_>>(),
        "properties": properties,
        "required": ["lora_file", "config_file"],
    })
}

/// Schema of a file of the result.
pub fn file_schema() -> Value {
    let optional = |title: &str, kind: &str, text: &str| json!({ "title": title, "description": text, "anyOf": [{ "type": kind }, { "type": "null" }] });
    json!({
        "title": "File",
        "type": "object",
        "x-fal-order-properties": ["url", "content_type", "file_name", "file_size"],
        "properties": {
            "url": { "title": "URL", "description": "Address to download the file from.", "type": "string", "format": "uri" },
            "content_type": optional("Content Type", "string", "MIME type of the file."),
            "file_name": optional("File Name", "string", "Name of the file."),
            "file_size": optional("File Size", "integer", "Size of the file in bytes."),
        },
        "required": ["url"],
    })
}

/// Component name made from the endpoint id, as fal makes them: `Ltx23TrainerV2IcLoraAv2avInput`.
fn name(mode: &Mode, what: &str) -> String {
    let words = crate::ALIAS.split('-').chain(mode.path.split(['/', '-']));
    let mut name = String::new();
    for word in words {
        let mut letters = word.chars();
        name.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        name.push_str(letters.as_str());
    }
    name + what
}

fn reference(component: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{component}") })
}

fn object<'f>(title: &str, fields: impl Iterator<Item = (&'f Field, Map<String, Value>)>) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (field, schema) in fields {
        if field.required() {
            required.push(field.name);
        }
        properties.insert(field.name.to_owned(), Value::Object(schema));
    }
    json!({
        "title": title,
        "type": "object",
        "x-fal-order-properties": properties.keys().collect::<Vec<_>>(),
        "properties": properties,
        "required": required,
    })
}

/// One property without its default. `mode` says what the entries of a validation list are.
fn property(field: &Field, mode: Option<&Mode>) -> Map<String, Value> {
    let kind = match field.kind {
        Kind::Text => json!({ "type": "string" }),
        Kind::Url => json!({ "type": "string", "format": "uri" }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Int { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Number { min, max } => json!({ "type": "number", "minimum": min, "maximum": max }),
        Kind::IntChoice(choices) => json!({ "type": "integer", "enum": choices }),
        Kind::TextChoice(choices) => json!({ "type": "string", "enum": choices }),
        Kind::Point => pair_of("integer"),
        Kind::TimeRanges => {
            json!({ "type": "array", "items": pair_of("number"), "examples": [[[1.0, 2.0]]] })
        }
        Kind::Items => {
            let item = mode.map_or("ValidationItem", |mode| mode.preview.item);
            json!({ "type": "array", "items": reference(item) })
        }
    };
    let mut schema = Map::new();
    schema.insert("title".to_owned(), field.title.into());
    schema.insert("description".to_owned(), field.text.into());
    if field.nullable() {
        schema.insert("anyOf".to_owned(), json!([kind, { "type": "null" }]));
    } else if let Value::Object(kind) = kind {
        schema.extend(kind);
    }
    schema
}

fn pair_of(kind: &str) -> Value {
    json!({ "type": "array", "items": { "type": kind }, "minItems": 2, "maxItems": 2 })
}

/// fal's OpenAPI document of one endpoint.
///
/// `base_url` is the server's public address without a slash at the end; requests go to its `/queue` prefix.
pub fn openapi(mode: &Mode, base_url: &str) -> Value {
    let id = mode.endpoint_id();
    let (input, output) = (name(mode, "Input"), name(mode, "Output"));
    let mut schemas = Map::new();
    schemas.insert("QueueStatus".to_owned(), queue_status());
    schemas.insert(input.clone(), input_schema(mode));
    schemas.insert(output.clone(), output_schema(mode));
    schemas.insert(mode.preview.item.to_owned(), item_schema(mode));
    schemas.insert("File".to_owned(), file_schema());
    json!({
        "openapi": "3.0.4",
        "info": {
            "title": format!("Queue OpenAPI for {id}"),
            "version": "1.0.0",
            "description": format!("The OpenAPI schema for the {id} queue."),
            "x-fal-metadata": {
                "endpointId": id,
                "category": "training",
                "documentationUrl": format!("{base_url}/api/openapi/queue/openapi.json?endpoint_id={id}"),
            },
        },
        "components": {
            "securitySchemes": {
                "apiKeyAuth": { "type": "apiKey", "in": "header", "name": "Authorization", "description": "Key <your key>" },
            },
            "schemas": schemas,
        },
        "paths": paths(&id, &input, &output),
        "servers": [{ "url": format!("{base_url}/queue") }],
        "security": [{ "apiKeyAuth": [] }],
    })
}

/// What submit and status answer.
fn queue_status() -> Value {
    let log = json!({
        "type": "object",
        "properties": {
            "message": { "type": "string" },
            "level": { "type": "string", "enum": crate::Level::ALL.map(crate::Level::as_str) },
            "source": { "type": "string" },
            "timestamp": { "type": "string", "format": "date-time" },
        },
        "required": ["message", "level", "source", "timestamp"],
    });
    let properties = json!({
        "status": { "type": "string", "enum": ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"] },
        "request_id": { "type": "string", "description": "The request id." },
        "response_url": { "type": "string", "description": "Where the result is." },
        "status_url": { "type": "string", "description": "Where the status is." },
        "cancel_url": { "type": "string", "description": "Where to cancel the request." },
        "logs": { "description": "The log lines, when asked for.", "anyOf": [{ "type": "array", "items": log }, { "type": "null" }] },
        "metrics": { "type": "object", "description": "Times, once completed.", "additionalProperties": true },
        "queue_position": { "type": "integer", "description": "Requests ahead, while waiting." },
        "error": { "type": "string", "description": "Why the request failed, if it did." },
        "error_type": { "type": "string", "description": "Kind of failure, for failures outside the model." },
    });
    let order: Vec<&String> = properties.as_object().into_iter().flat_map(Map::keys).collect();
    json!({
        "type": "object",
        "x-fal-order-properties": order,
        "properties": properties,
        "required": ["status", "request_id"],
    })
}

fn paths(id: &str, input: &str, output: &str) -> Value {
    let answer = |text: &str, schema: Value| json!({ "description": text, "content": { "application/json": { "schema": schema } } });
    let request_id = json!({
        "name": "request_id", "in": "path", "required": true,
        "schema": { "type": "string", "description": "Request ID" },
    });
    let logs = json!({
        "name": "logs", "in": "query", "required": false,
        "schema": { "type": "number", "description": "Whether to include logs (`1`) or not (`0`)." },
    });
    let status = |text: &str| answer(text, reference("QueueStatus"));
    let cancelled = json!({
        "type": "object",
        "properties": { "status": { "type": "string", "enum": ["CANCELLATION_REQUESTED", "ALREADY_COMPLETED", "NOT_FOUND"] } },
        "required": ["status"],
    });
    let mut paths = Map::new();
    let mut add = |path: String, operations: Value| paths.insert(path, operations);
    add(
        format!("/{id}"),
        json!({ "post": {
            "requestBody": { "required": true, "content": { "application/json": { "schema": reference(input) } } },
            "responses": { "200": status("The request was accepted.") },
        } }),
    );
    add(
        format!("/{id}/requests/{{request_id}}"),
        json!({ "get": {
            "parameters": [request_id],
            "responses": { "200": answer("Result of the request.", reference(output)) },
        } }),
    );
    add(
        format!("/{id}/requests/{{request_id}}/status"),
        json!({ "get": {
            "parameters": [request_id, logs],
            "responses": {
                "200": status("The request is completed."),
                "202": status("The request waits or runs."),
            },
        } }),
    );
    add(
        format!("/{id}/requests/{{request_id}}/cancel"),
        json!({ "put": {
            "parameters": [request_id],
            "responses": {
                "202": answer("The request will be cancelled.", cancelled.clone()),
                "400": answer("The request is completed already.", cancelled),
            },
        } }),
    );
    Value::Object(paths)
}
