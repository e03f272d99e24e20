//! Objects that several modules give, and how they look.

use std::rc::Rc;

use hgs_protocol::protector::Certificate;
use hgs_shell::{
    format::{Column, Shape, View},
    value::{Date, Object, Value},
};

use crate::owner::certificate::CertificateView;

/// The looks of the cmdlets' objects.
pub(crate) const VIEWS: &[View] = &[
    View {
        kind: "MSFT_HgsGuardian",
        shape: Shape::Table {
            columns: &[
                Column::of("Name"),
                Column::of("HasPrivateSigningKey"),
                Column::titled("Signing Certificate Subject", "SigningCertificateSubject"),
            ],
            group: None,
        },
    },
    View {
        kind: "X509Certificate2",
        shape: Shape::Table {
            columns: &[Column::of("Thumbprint"), Column::of("Subject")],
            group: None,
        },
    },
    View {
        kind: "AttestationPolicyInfo",
        shape: Shape::Table {
            columns: &[
                Column::of("Name"),
                Column::of("PolicyType"),
                Column::of("State"),
                Column::of("PolicyVersion"),
            ],
            group: None,
        },
    },
    View {
        kind: "KeyCertificate",
        shape: Shape::List(&[
            "CertificateType",
            "Thumbprint",
            "IsPrimary",
            "IsEnabled",
            "CertificateData",
        ]),
    },
    View {
        kind: "VirtualMachine",
        shape: Shape::Table {
            columns: &[
                Column::of("Name"),
                Column::of("State"),
                Column::of("Generation"),
                Column::of("OwnerHost"),
                Column::of("Status"),
            ],
            group: None,
        },
    },
    View {
        kind: "VMSnapshot",
        shape: Shape::Table {
            columns: &[
                Column::of("VMName"),
                Column::of("Name"),
                Column::of("SnapshotType"),
                Column::of("CreationTime"),
            ],
            group: None,
        },
    },
    View {
        kind: "VMSecurity",
        shape: Shape::List(&[
            "TpmEnabled",
            "KsdEnabled",
            "Shielded",
            "EncryptStateAndVmMigrationTraffic",
            "VirtualizationBasedSecurityOptOut",
            "BindToHostTpm",
        ]),
    },
];

/// A certificate as .NET shows it.
pub(crate) fn certificate(der: &[u8], has_private_key: bool, store: Option<&str>) -> Value {
    let Ok(parsed) = Certificate::parse(der) else {
        return Value::object("X509Certificate2", [("RawData", Value::Bytes(der.into()))]);
    };
    let view = CertificateView::of(&parsed);
    let mut properties = vec![
        ("Thumbprint", Value::text(&view.thumbprint)),
        ("Subject", Value::text(&view.subject)),
        ("Issuer", Value::text(&view.issuer)),
        ("NotBefore", Value::Date(Date(view.validity.0.0))),
        ("NotAfter", Value::Date(Date(view.validity.1.0))),
        ("HasPrivateKey", Value::Bool(has_private_key)),
        ("RawData", Value::Bytes(der.into())),
    ];
    if let Some(store) = store {
        let path = format!(
            r"Microsoft.PowerShell.Security\Certificate::LocalMachine\{store}\{}",
            view.thumbprint
        );
        properties.push(("PSPath", Value::text(path)));
    }
    let object = typed(&["X509Certificate2", "X509Certificate", "Certificate"], properties);
    object
        .hidden
        .borrow_mut()
        .set("ToString", Value::text(format!("[Subject]\n  {}", view.subject)));
    Value::Object(Rc::new(object))
}

/// A URL as .NET shows it.
pub(crate) fn uri(text: &str) -> Value {
    let url = reqwest::Url::parse(text).ok();
    let part = |part: Option<&str>| Value::text(part.unwrap_or_default());
    let object = Object::new(
        "Uri",
        [
            ("AbsoluteUri", Value::text(text)),
            ("AbsolutePath", part(url.as_ref().map(|url| url.path()))),
            ("Scheme", part(url.as_ref().map(|url| url.scheme()))),
            ("Host", part(url.as_ref().and_then(|url| url.host_str()))),
            (
                "Port",
                Value::Int(
                    url.as_ref()
                        .and_then(|url| url.port_or_known_default())
                        .unwrap_or_default()
                        .into(),
                ),
            ),
        ],
    );
    object.hidden.borrow_mut().set("ToString", Value::text(text));
    Value::Object(Rc::new(object))
}

/// An XML document whose text is kept as it is.
pub(crate) fn xml(root: &str, text: &str) -> Value {
    let object = Object::new("XmlDocument", [(root, Value::text(root))]);
    let mut hidden = object.hidden.borrow_mut();
    hidden.set("OuterXml", Value::text(text));
    hidden.set("InnerXml", Value::text(text));
    hidden.set("ToString", Value::text("#document"));
    drop(hidden);
    Value::Object(Rc::new(object))
}

/// An object of several types.
pub(crate) fn typed<N: Into<String>>(types: &[&str], properties: impl IntoIterator<Item = (N, Value)>) -> Object {
    Object {
        types: types.iter().map(|name| (*name).into()).collect(),
        ..Object::new("", properties)
    }
}

/// Text, or `$null` for nothing.
pub(crate) fn or_null(text: Option<String>) -> Value {
    text.map_or(Value::Null, Value::text)
}
