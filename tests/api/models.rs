//! Section 9: the list of models and the OpenAPI documents.

use crate::support::Api;
use serde_json::{Value, json};

const T2V: &str = "fal-ai/ltx23-trainer-v2/t2v";

#[tokio::test]
async fn every_endpoint_is_listed() {
    let api = Api::new().await;
    let body = api.get("/v1/models").await.json();
    let ids: Vec<&str> =
        body["models"].as_array().unwrap().iter().map(|m| m["endpoint_id"].as_str().unwrap()).collect();
    let expected: Vec<String> = spec::modes().iter().map(spec::Mode::endpoint_id).collect();
    assert_eq!(ids, expected);
    assert_eq!((&body["has_more"], &body["next_cursor"]), (&json!(false), &Value::Null));
    assert!(body["models"].as_array().unwrap().iter().all(|m| m.get("openapi").is_none()));
    assert_eq!(body["models"][0]["metadata"]["category"], "training");
}

#[tokio::test]
async fn models_are_found_by_endpoint() {
    let api = Api::new().await;
    let other = "fal-ai/ltx23-trainer-v2/ic-lora/av2av";
    let one = api.get(&format!("/v1/models?endpoint_id={T2V}")).await.json();
    assert_eq!(one["models"].as_array().unwrap().len(), 1);
    let two = api.get(&format!("/v1/models?endpoint_id={T2V}&endpoint_id={other}")).await.json();
    assert_eq!(
        (&two["models"][0]["endpoint_id"], &two["models"][1]["endpoint_id"]),
        (&json!(T2V), &json!(other))
    );
    let unknown = api.get("/v1/models?endpoint_id=fal-ai/flux/dev").await;
    assert_eq!((unknown.status.as_u16(), &unknown.json()["error"]["type"]), (404, &json!("not_found")));
}

#[tokio::test]
async fn a_model_is_expanded_with_its_openapi_document() {
    let api = Api::new().await;
    let model = api.get(&format!("/v1/models?endpoint_id={T2V}&expand=openapi-3.0")).await.json();
    let document = api.get(&format!("/api/openapi/queue/openapi.json?endpoint_id={T2V}")).await.json();
    assert_eq!(model["models"][0]["openapi"], document);
}

#[tokio::test]
async fn the_document_is_made_as_tools_expect_it() {
    let api = Api::new().await;
    for mode in spec::modes() {
        let id = mode.endpoint_id();
        let document = api.get(&format!("/api/openapi/queue/openapi.json?endpoint_id={id}")).await.json();
        assert_eq!(document["openapi"], "3.0.4");
        assert_eq!(document["info"]["title"], format!("Queue OpenAPI for {id}"));
        assert_eq!(document["info"]["x-fal-metadata"]["endpointId"], id);
        assert_eq!(document["servers"], json!([{"url": "http://kiln.test:8080/queue"}]));
        assert_eq!(document["components"]["securitySchemes"]["apiKeyAuth"]["name"], "Authorization");
        let paths = document["paths"].as_object().unwrap();
        let requests = format!("/{id}/requests/{{request_id}}");
        for (path, method) in [
            (format!("/{id}"), "post"),
            (requests.clone(), "get"),
            (format!("{requests}/status"), "get"),
            (format!("{requests}/cancel"), "put"),
        ] {
            assert!(paths[&path][method].is_object(), "{method} {path}");
        }
        // The way tools find the input: the post whose path lacks /requests/.
        let (_, submit) = paths
            .iter()
            .find(|(path, methods)| methods.get("post").is_some() && !path.contains("/requests/"))
            .unwrap();
        let reference =
            submit["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str().unwrap();
        let name = reference.strip_prefix("#/components/schemas/").unwrap();
        let input = &document["components"]["schemas"][name];
        assert!(input["properties"]["training_data_url"].is_object(), "{id}");
        assert!(input["x-fal-order-properties"].is_array(), "{id}");
    }
}

#[tokio::test]
async fn a_document_needs_a_known_endpoint() {
    let api = Api::new().await;
    let path = "/api/openapi/queue/openapi.json";
    api.get(&format!("{path}?endpoint_id=fal-ai/flux/dev"))
        .await
        .is(404, json!({"detail": "Application 'fal-ai/flux/dev' not found"}));
    let missing = api.get(path).await;
    assert_eq!(missing.status, 400);
    assert!(missing.text().contains("endpoint_id is missing"));
}

#[tokio::test]
async fn the_addresses_of_webhooks_are_told() {
    let api = Api::with(|options| options.webhook_ip_ranges = vec!["10.0.0.0/8".into()]).await;
    api.get("/v1/meta").await.is(200, json!({"webhook_ip_ranges": ["10.0.0.0/8"]}));
}
