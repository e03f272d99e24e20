//! Names, connections, and pages of the fabric's web servers.

use hgs_shell::{
    call::Call,
    error::{Category, ErrorRecord, Outcome},
    value::{Object, Value, convert},
};

use crate::cmdlets::{failed, lab};

/// The fabric's hosts find the HGS domain from now on.
pub(super) fn add_forwarder(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let zone = call.text("Name").unwrap_or_default();
    if call.should_process(&zone, "Forward the names of a zone")? {
        lab.hide_names(false)
            .map_err(|error| failed(call, "ZoneNotAdded", error))?;
        if call.switch("PassThru") {
            call.write(Value::object(
                "DnsServerConditionalForwarderZone",
                [("ZoneName", Value::text(zone)), ("ZoneType", Value::text("Forwarder"))],
            ))?;
        }
    }
    Ok(())
}

pub(super) fn resolve(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let name = call.text("Name").unwrap_or_default();
    let port = lab.cluster().map_or(80, |cluster| cluster.http_port);
    let addresses = lab.resolve(&name, port);
    if addresses.is_empty() && lab.machine(&name).is_none() {
        return Err(call.fail(
            ErrorRecord::new(
                Category::ResourceUnavailable,
                "DNS_ERROR_RCODE_NAME_ERROR",
                format!(
                    "{name} : DNS name does not exist. Names of the HGS domain are found by way of a conditional forwarder on the \
                     fabric's DNS servers (Add-DnsServerConditionalForwarderZone)."
                ),
            )
            .exception("Win32Exception")
            .about(Value::text(name)),
        ));
    }
    let mut shown: Vec<String> = addresses.iter().map(|address| address.to_string()).collect();
    if shown.is_empty() {
        shown.push("127.0.0.1".to_owned());
    }
    for address in shown {
        call.write(Value::object(
            "DnsRecord",
            [
                ("Name", Value::text(&name)),
                ("Type", Value::text("A")),
                ("Section", Value::text("Answer")),
                ("IPAddress", Value::text(address)),
            ],
        ))?;
    }
    Ok(())
}

pub(super) fn test(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let name = call.text("ComputerName").unwrap_or_else(|| call.machine().name.clone());
    let asked = match call
        .text("CommonTCPPort")
        .map(|port| port.to_ascii_uppercase())
        .as_deref()
    {
        Some("HTTP") => Some(80),
        Some("RDP") => Some(3389),
        Some("SMB") => Some(445),
        Some("WINRM") => Some(5985),
        _ => call.integer("Port"),
    };
    let port = asked.and_then(|port| u16::try_from(port).ok());
    let addresses = port.map(|port| lab.resolve(&name, port)).unwrap_or_default();
    let reached = addresses
        .iter()
        .any(|address| std::net::TcpStream::connect(address).is_ok());
    let found = reached || lab.machine(&name).is_some();
    if call
        .text("InformationLevel")
        .is_some_and(|level| level.eq_ignore_ascii_case("Quiet"))
    {
        return call.write(Value::Bool(if port.is_some() { reached } else { found }));
    }
    let mut properties = vec![
        ("ComputerName", Value::text(&name)),
        (
            "RemoteAddress",
            addresses
                .first()
                .map_or(Value::Null, |address| Value::text(address.ip().to_string())),
        ),
    ];
    match port {
        Some(port) => {
            properties.push(("RemotePort", Value::Int(port.into())));
            properties.push(("TcpTestSucceeded", Value::Bool(reached)));
        }
        None => properties.push(("PingSucceeded", Value::Bool(found))),
    }
    if port.is_some() && !reached {
        call.warning(&format!(
            "TCP connect to ({name} : {}) failed",
            port.unwrap_or_default()
        ))?;
    }
    call.write(Value::object("NetConnectionResults", properties))
}

pub(super) fn web_request(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let url = call.get("Uri").map(|uri| convert::to_text(&uri)).unwrap_or_default();
    let url = if url.contains("://") {
        url
    } else {
        format!("http://{url}")
    };
    let method = call.text("Method").unwrap_or_else(|| "Get".to_owned());
    if !matches!(method.to_ascii_lowercase().as_str(), "get" | "default") {
        return super::outside(call, "pages are read here, by GET");
    }
    let answer = lab.get(&url, LARGEST_PAGE);
    let answer = answer.map_err(|error| {
        call.fail(
            ErrorRecord::new(
                Category::ConnectionError,
                "WebCmdletWebResponseException",
                format!("The remote name could not be resolved or does not answer: {error:#}."),
            )
            .exception("WebException")
            .about(Value::text(&url)),
        )
    })?;
    if answer.status >= 400 {
        return Err(call.fail(
            ErrorRecord::new(
                Category::InvalidOperation,
                "WebCmdletWebResponseException",
                format!("The remote server returned an error: ({}).", answer.status),
            )
            .exception("WebException")
            .about(Value::text(&url)),
        ));
    }
    let path = call.text("OutFile");
    if let Some(path) = &path {
        call.write_file(path, &answer.body)?;
    }
    if path.is_none() || call.switch("PassThru") {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let object = Object::new(
            "HtmlWebResponseObject",
            [
                ("StatusCode", Value::Int(answer.status.into())),
                ("StatusDescription", Value::text("OK")),
                ("Content", Value::text(text)),
                (
                    "RawContentLength",
                    Value::Int(i64::try_from(answer.body.len()).unwrap_or(i64::MAX)),
                ),
            ],
        );
        call.write(Value::Object(std::rc::Rc::new(object)))?;
    }
    Ok(())
}

const LARGEST_PAGE: usize = 4 << 20;
