//! Which representation a caller wants: the `Accept` header.

/// How an answer is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// application/json
    Json,
    /// application/yaml
    Yaml,
}

/// What an answer shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object itself.
    Object,
    /// A Table of `meta.k8s.io` in this version.
    Table(String),
    /// Metadata alone, of one object, in this version.
    Partial(String),
    /// Metadata alone, of a list, in this version.
    PartialList(String),
    /// Aggregated discovery in this version.
    Discovery(String),
}

/// A negotiated answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// How it is encoded.
    pub encoding: Encoding,
    /// What it shows.
    pub form: Form,
    /// Whether the caller named a stream (`;stream=watch`).
    pub stream: bool,
}

/// Why nothing was acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No known media type.
    MediaType,
    /// A known media type, but a representation that does not exist.
    Form,
}

/// Most media types of one header that are looked at.
const MAX_CLAUSES: usize = 32;

/// Chooses the first acceptable clause. An absent or empty header means JSON.
pub fn accept(header: Option<&str>) -> Result<Accepted, Refused> {
    let header = header.unwrap_or("").trim();
    let json = Accepted { encoding: Encoding::Json, form: Form::Object, stream: false };
    if header.is_empty() {
        return Ok(json);
    }
    let mut refused = Refused::MediaType;
    for clause in header.split(',').take(MAX_CLAUSES) {
        match one(clause) {
            Ok(accepted) => return Ok(accepted),
            Err(Refused::Form) => refused = Refused::Form,
            Err(Refused::MediaType) => {}
        }
    }
    Err(refused)
}

fn one(clause: &str) -> Result<Accepted, Refused> {
    let mut parts = clause.split(';').map(str::trim);
    let encoding = match parts.next().unwrap_or("") {
        "application/json" | "*/*" | "application/*" => Encoding::Json,
        "application/yaml" => Encoding::Yaml,
        _ => return Err(Refused::MediaType),
    };
    let (mut kind, mut version, mut group, mut stream) = ("", "", "", false);
    for part in parts {
        match part.split_once('=') {
            Some(("as", v)) => kind = v,
            Some(("v", v)) => version = v,
            Some(("g", v)) => group = v,
            Some(("stream", v)) => stream = v == "watch",
            _ => {}
        }
    }
    let meta = group == "meta.k8s.io" && (version == "v1" || version == "v1beta1");
    let form = match kind {
        "" => Form::Object,
        "Table" if meta => Form::Table(version.into()),
        "PartialObjectMetadata" if meta => Form::Partial(version.into()),
        "PartialObjectMetadataList" if meta => Form::PartialList(version.into()),
        "APIGroupDiscoveryList"
            if group == "apidiscovery.k8s.io" && (version == "v2" || version == "v2beta1") =>
        {
            Form::Discovery(version.into())
        }
        _ => return Err(Refused::Form),
    };
    Ok(Accepted { encoding, form, stream })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clauses() {
        let form = |h: &str| accept(Some(h)).map(|a| a.form);
        assert_eq!(
            form("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
            Ok(Form::Table("v1".into()))
        );
        assert_eq!(form("application/json;as=Nope;v=v1;g=meta.k8s.io,application/json"), Ok(Form::Object));
        assert_eq!(form("application/json;as=Nope;v=v1;g=meta.k8s.io"), Err(Refused::Form));
        assert_eq!(form("text/html"), Err(Refused::MediaType));
        assert_eq!(form("application/vnd.kubernetes.protobuf, application/json"), Ok(Form::Object));
        assert_eq!(form("*/*"), Ok(Form::Object));
        assert_eq!(accept(None).map(|a| a.encoding), Ok(Encoding::Json));
        assert_eq!(accept(Some("application/yaml")).map(|a| a.encoding), Ok(Encoding::Yaml));
        assert_eq!(
            form("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"),
            Ok(Form::Discovery("v2".into()))
        );
    }
}
