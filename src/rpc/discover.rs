//! What `rpc.discover` answers: an `OpenRPC` document of all methods, made once from the registry.
//!
//! The registry has it made when it is complete. Where a program described a method, its summary and the schemas of its
//! types are in it; of others only the name is known.

use std::borrow::Cow;

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::about::About;

type Shape = fn(&mut SchemaGenerator) -> Schema;

/// What a method is for and what it takes and gives, for [`Server::describe`](crate::Server::describe).
///
/// Schemas come from types, so they stay true when those change: derive [`JsonSchema`] for
/// the types of params and result.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tine::Description;
/// use tine::schemars::{self, JsonSchema};
///
/// #[derive(Deserialize, JsonSchema)]
/// struct Order {
///     /// How many pens.
///     pens: u32,
/// }
///
/// #[derive(Serialize, JsonSchema)]
/// struct Receipt {
///     cents: u64,
/// }
///
/// let server = tine::Server::new()
///     .about("Pen shop", "1.4.0")
///     .method("order", |_call, order: Order| Ok(Receipt { cents: u64::from(order.pens) * 120 }))
///     .describe("order", Description::new("Orders pens").params::<Order>().result::<Receipt>());
///
/// let document = server.local()?.call("rpc.discover", ())?;
/// let order = &document["methods"][1];
/// assert_eq!((&order["name"], &order["summary"]), (&"order".into(), &"Orders pens".into()));
/// assert_eq!(order["params"][0]["name"], "pens");
/// # Ok::<(), tine::BoxError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "it describes nothing until it is given to `Server::describe`"]
pub struct Description {
    summary: Cow<'static, str>,
    params: Option<Shape>,
    result: Option<Shape>,
}

impl Description {
    /// What the method does, in a line.
    pub fn new(summary: impl Into<Cow<'static, str>>) -> Description {
        Description { summary: summary.into(), params: None, result: None }
    }

    /// The type that the handler takes. The members of a struct and the elements of a tuple become a param each.
    pub fn params<P: JsonSchema>(mut self) -> Description {
        self.params = Some(P::json_schema);
        self
    }

    /// The type that the handler gives.
    pub fn result<R: JsonSchema>(mut self) -> Description {
        self.result = Some(R::json_schema);
        self
    }
}

/// The document for these methods, which stand in it in this order.
pub(super) fn document<'a>(
    about: &About,
    methods: impl Iterator<Item = (&'a str, Option<&'a Description>)>,
) -> Value {
    // The schemas that OpenRPC refers to are those of draft 7.
    let mut generator = SchemaSettings::draft07()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let methods: Vec<Value> =
        methods.map(|(name, description)| method(name, description, &mut generator)).collect();
    let mut document = json!({
        "openrpc": "1.3.2",
        "info": { "title": about.title, "version": about.version.as_deref().unwrap_or("unknown") },
        "methods": methods,
    });
    let schemas = generator.take_definitions(true);
    if let (false, Some(members)) = (schemas.is_empty(), document.as_object_mut()) {
        members.insert("components".to_owned(), json!({ "schemas": schemas }));
    }
    document
}

fn method(name: &str, description: Option<&Description>, generator: &mut SchemaGenerator) -> Value {
    let params = description.and_then(|description| description.params);
    let (params, structure) = match params {
        Some(shape) => params_of(schema_of(shape, generator)),
        None => (vec![descriptor("params", any(), false)], "either"),
    };
    let result = description.and_then(|description| description.result);
    let result = result.map_or_else(any, |shape| schema_of(shape, generator));
    let mut method = json!({
        "name": name,
        "params": params,
        "paramStructure": structure,
        "result": { "name": "result", "schema": result },
    });
    if let (Some(description), Some(members)) = (description, method.as_object_mut()) {
        members.insert("summary".to_owned(), description.summary.clone().into());
    }
    method
}

/// The params that a schema means, and how they may be sent. Members of a struct are sent by name: their order is not
/// in a schema.
fn params_of(schema: Value) -> (Vec<Value>, &'static str) {
    if let Some(members) = schema.get("properties").and_then(Value::as_object) {
        let required = schema.get("required").and_then(Value::as_array);
        let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|other| other == name));
        let (first, last): (Vec<_>, Vec<_>) = members.iter().partition(|(name, _)| is_required(name));
        let params = first.into_iter().map(|(name, schema)| descriptor(name, schema.clone(), true));
        // The specification wants them behind all that must be there.
        let params =
            params.chain(last.into_iter().map(|(name, schema)| descriptor(name, schema.clone(), false)));
        return (params.collect(), "by-name");
    }
    if let Some(elements) = schema.get("items").and_then(Value::as_array) {
        let params = elements
            .iter()
            .zip(1_u32..)
            .map(|(element, number)| descriptor(&format!("param{number}"), element.clone(), true));
        return (params.collect(), "by-position");
    }
    let is = |name: &str| schema.get("type").is_some_and(|kind| kind == name);
    let is_map = schema.get("additionalProperties").is_some_and(|inside| inside != &Value::Bool(false));
    if is("null") || (is("object") && !is_map) {
        return (Vec::new(), "either");
    }
    let required = !is_map && !takes_null(&schema);
    (vec![descriptor("params", schema, required)], "by-position")
}

/// Whether a value of this schema may be `null`, as which params are read that are not there.
fn takes_null(schema: &Value) -> bool {
    let is_null = |kind: &Value| kind == "null";
    let kinds = schema.get("type").and_then(Value::as_array);
    let any_of = schema.get("anyOf").and_then(Value::as_array);
    schema.as_object().is_none_or(Map::is_empty)
        || kinds.is_some_and(|kinds| kinds.iter().any(is_null))
        || any_of.is_some_and(|schemas| schemas.iter().any(|one| one.get("type").is_some_and(is_null)))
}

fn descriptor(name: &str, schema: Value, required: bool) -> Value {
    json!({ "name": name, "schema": schema, "required": required })
}

fn schema_of(shape: Shape, generator: &mut SchemaGenerator) -> Value {
    let mut schema = shape(generator);
    for transform in generator.transforms_mut() {
        transform.transform(&mut schema);
    }
    schema.to_value()
}

/// The schema of any value.
fn any() -> Value {
    Value::Object(Map::new())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Deserialize, JsonSchema)]
    #[expect(dead_code, reason = "only its shape is looked at")]
    struct Nap {
        ms: u64,
        #[serde(default)]
        tags: Vec<Tag>,
    }

    #[derive(Deserialize, JsonSchema)]
    #[expect(dead_code, reason = "only its shape is looked at")]
    struct Ring {
        #[serde(default)]
        after_ms: u64,
        times: u64,
    }

    #[derive(Deserialize, JsonSchema)]
    struct Nothing {}

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Tag {
        name: String,
        inner: Option<Box<Tag>>,
    }

    fn described(description: Description) -> Value {
        let about = About { title: "t".to_owned(), version: Some("1".to_owned()) };
        document(&about, [("frob", Some(&description))].into_iter())
    }

    #[test]
    fn the_members_of_a_struct_are_params_by_name() {
        let document = described(Description::new("Naps").params::<Nap>().result::<Vec<Tag>>());
        let method = &document["methods"][0];
        assert_eq!(method["summary"], "Naps");
        assert_eq!(method["paramStructure"], "by-name");
        let params: Vec<_> = method["params"]
            .as_array()
            .unwrap()
            .iter()
            .map(|param| (&param["name"], &param["required"]))
            .collect();
        assert_eq!(params, [(&json!("ms"), &json!(true)), (&json!("tags"), &json!(false))]);
        assert_eq!(method["result"]["schema"]["items"]["$ref"], "#/components/schemas/Tag");
        assert_eq!(document["components"]["schemas"]["Tag"]["properties"]["name"]["type"], "string");
    }

    #[test]
    fn the_elements_of_a_tuple_are_params_by_position_and_one_value_is_one_param() {
        let document = described(Description::new("Adds").params::<(i64, i64)>());
        let method = &document["methods"][0];
        assert_eq!(method["params"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&method["params"][1]["name"], &method["paramStructure"]),
            (&json!("param2"), &json!("by-position"))
        );
        let document = described(Description::new("Halves").params::<u64>());
        assert_eq!(document["methods"][0]["params"][0]["schema"]["type"], "integer");
        let document = described(Description::new("Rests").params::<()>());
        assert_eq!(document["methods"][0]["params"], json!([]));
    }

    /// Names of the params, and which of them must be there.
    fn params(description: Description) -> Vec<(String, bool)> {
        let document = described(description);
        let params = document["methods"][0]["params"].as_array().unwrap().iter();
        params.map(|param| (param["name"].as_str().unwrap().to_owned(), param["required"] == true)).collect()
    }

    #[test]
    fn what_may_be_left_out_is_not_required_and_stands_last() {
        let one = |name: &str, required| vec![(name.to_owned(), required)];
        let ring = params(Description::new("Rings").params::<Ring>());
        assert_eq!(ring, [one("times", true), one("after_ms", false)].concat());
        assert_eq!(params(Description::new("Halves").params::<u64>()), one("params", true));
        assert_eq!(params(Description::new("Halves").params::<Option<u64>>()), one("params", false));
        assert_eq!(params(Description::new("Tags").params::<Option<Tag>>()), one("params", false));
        assert_eq!(params(Description::new("Echoes").params::<Value>()), one("params", false));
        assert_eq!(params(Description::new("Counts").params::<HashMap<String, u64>>()), one("params", false));
        assert_eq!(params(Description::new("Rests").params::<Nothing>()), []);
    }

    #[test]
    fn of_a_method_that_nobody_described_the_name_is_known() {
        let about = About { title: "shop".to_owned(), version: Some("1.2".to_owned()) };
        assert_eq!(
            document(&about, [("frob", None)].into_iter()),
            json!({
                "openrpc": "1.3.2",
                "info": { "title": "shop", "version": "1.2" },
                "methods": [{
                    "name": "frob",
                    "params": [{ "name": "params", "schema": {}, "required": false }],
                    "paramStructure": "either",
                    "result": { "name": "result", "schema": {} },
                }],
            })
        );
    }
}
