//! Which objects are meant.

use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
};

/// Some objects of one resource, of all namespaces or of one.
#[derive(Clone, Debug)]
pub struct Selection {
    resource: ApiResource,
    namespace: Option<String>,
    name: Option<String>,
    labels: Option<String>,
    fields: Vec<String>,
    /// Whether an API server that does not know the fields is asked without them.
    or_without_fields: bool,
}

impl Selection {
    /// All objects of a type: `Selection::of::<Service>()`.
    pub fn of<K: Resource<DynamicType = ()>>() -> Self {
        Self::all(ApiResource::erase::<K>(&()))
    }

    /// All objects of a resource for which there is no type; `group` is empty for the core's.
    pub fn resource(group: &str, version: &str, kind: &str, plural: &str) -> Self {
        Self::all(ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural))
    }

    fn all(resource: ApiResource) -> Self {
        Self { resource, namespace: None, name: None, labels: None, fields: vec![], or_without_fields: false }
    }

    /// Those of one namespace.
    #[must_use]
    pub fn within(self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self }
    }

    /// The one of this name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.fields.push(format!("metadata.name={name}"));
        Self { name: Some(name.to_owned()), ..self }
    }

    /// Those that a label selector has.
    #[must_use]
    pub fn labels(self, selector: &str) -> Self {
        Self { labels: Some(selector.to_owned()), ..self }
    }

    /// Those that a field selector has.
    #[must_use]
    pub fn fields(mut self, selector: &str) -> Self {
        self.fields.push(selector.to_owned());
        self
    }

    /// With those that the field selectors leave out, where the API server does not know the fields: older ones do not know all.
    #[must_use]
    pub fn or_without_fields(self) -> Self {
        Self { or_without_fields: true, ..self }
    }

    /// What is asked for where an API server refuses the field selectors (400), naming one of their fields, if anything.
    pub(crate) fn without_fields(&self, refusal: &str) -> Option<Self> {
        let mut fields = self.fields.iter().filter_map(|selector| selector.split(['!', '=']).next());
        let refused = self.or_without_fields && fields.any(|field| refusal.contains(field));
        refused.then(|| Self { fields: vec![], or_without_fields: false, ..self.clone() })
    }

    /// The namespace, where one is meant.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The name of the one object that is meant.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether every API has the resource: a 404 is not the API server's.
    pub fn is_of_core(&self) -> bool {
        self.resource.group.is_empty()
    }

    /// Whether an object, as kubectl prints it, has this resource's `apiVersion` and `kind`.
    pub fn is_of(&self, api_version: &str, kind: &str) -> bool {
        self.resource.api_version == api_version && self.resource.kind == kind
    }

    /// The objects that have no type here.
    pub fn objects(&self, client: &Client) -> Api<DynamicObject> {
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &self.resource),
            None => Api::all_with(client.clone(), &self.resource),
        }
    }

    /// A new object of this resource, here only.
    pub fn new_object(&self, name: &str) -> DynamicObject {
        let mut object = DynamicObject::new(name, &self.resource);
        object.metadata.namespace.clone_from(&self.namespace);
        object
    }

    pub(crate) fn field_selector(&self) -> Option<String> {
        (!self.fields.is_empty()).then(|| self.fields.join(","))
    }

    pub(crate) fn label_selector(&self) -> Option<String> {
        self.labels.clone()
    }

    /// `ippools.crd.projectcalico.org`: the resource as RBAC and kubectl name it, with the namespace and the name.
    pub fn describe(&self) -> String {
        let ApiResource { group, plural, .. } = &self.resource;
        let dot = if group.is_empty() { "" } else { "." };
        let name = self.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        let namespace = self.namespace.as_ref().map(|name| format!(" in namespace {name}")).unwrap_or_default();
        format!("{plural}{dot}{group}{name}{namespace}")
    }

    /// The same with the selectors that narrow it down.
    pub fn describe_narrowly(&self) -> String {
        let labels = self.labels.as_ref().map(|labels| format!(", labels {labels}")).unwrap_or_default();
        let fields = self.fields.iter().filter(|_| self.name.is_none()).map(|fields| format!(", fields {fields}"));
        format!("{}{labels}{}", self.describe(), fields.collect::<String>())
    }

    /// The rule that a role lacks when this resource is forbidden.
    pub fn rule(&self, verb: &str) -> String {
        let role = if self.namespace.is_some() { "Role" } else { "ClusterRole" };
        let names = self.name.as_ref().map(|name| format!(", resourceNames [{name}]")).unwrap_or_default();
        let place = self.namespace.as_ref().map(|name| format!(" in namespace {name}")).unwrap_or_default();
        let ApiResource { group, plural, .. } = &self.resource;
        format!("a {role}{place} with apiGroups [\"{group}\"], resources [{plural}]{names}, verbs [{verb}]")
    }
}
