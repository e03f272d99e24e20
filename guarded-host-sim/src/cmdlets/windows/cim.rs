//! CIM classes of a host: its client configuration with the numbers that remoting shows, and the update of its code-integrity policy.

use hgs_shell::{
    call::Call,
    error::{Category, ErrorRecord, Outcome},
    value::{Value, convert},
};

use super::ci_policy;
use crate::{
    agent::view::ClientView,
    cmdlets::{client::told, objects, on_host},
};

pub(super) fn get(call: &mut Call<'_>) -> Outcome {
    let class = call.text("ClassName").unwrap_or_default();
    if !class.eq_ignore_ascii_case("MSFT_HgsClientConfiguration") {
        return unknown(call, &class);
    }
    let (lab, agent) = on_host(call)?;
    let answer = lab.wait(agent.get::<ClientView>("client-configuration"));
    let view = told(call, "HgsClientConfiguration", answer)?;
    let text = |text: &Option<String>| objects::or_null(text.clone());
    let bits = i64::try_from(view.attestation_substatus_bits).unwrap_or(i64::MAX);
    call.write(Value::object(
        "CimInstance#MSFT_HgsClientConfiguration",
        [
            (
                "AttestationOperationMode",
                Value::Int(view.attestation_operation_mode_code.into()),
            ),
            ("AttestationServerUrl", text(&view.attestation_server_url)),
            ("AttestationStatus", Value::Int(view.attestation_status_code.into())),
            ("AttestationSubstatus", Value::Int(bits)),
            (
                "FallbackAttestationServerUrl",
                text(&view.fallback_attestation_server_url),
            ),
            (
                "FallbackKeyProtectionServerUrl",
                text(&view.fallback_key_protection_server_url),
            ),
            ("IsFallbackInUse", Value::Bool(view.is_fallback_in_use)),
            ("IsHostGuarded", Value::Bool(view.is_host_guarded)),
            ("KeyProtectionServerUrl", text(&view.key_protection_server_url)),
            ("LastAttestationServerUrl", text(&view.last_attestation_server_url)),
            ("LastKeyProtectionServerUrl", text(&view.last_key_protection_server_url)),
            ("Mode", Value::Int(view.mode_code.into())),
        ],
    ))
}

pub(super) fn invoke(call: &mut Call<'_>) -> Outcome {
    let class = call.text("ClassName").unwrap_or_default();
    let method = call.text("MethodName").unwrap_or_default();
    if !class.eq_ignore_ascii_case("PS_UpdateAndCompareCIPolicy") || !method.eq_ignore_ascii_case("Update") {
        return unknown(call, &class);
    }
    let path = match call.get("Arguments") {
        Some(Value::Table(table)) => table.borrow().get("FilePath").map(convert::to_text),
        _ => None,
    };
    let Some(path) = path else {
        return Err(call.fail(ErrorRecord::new(
            Category::InvalidArgument,
            "FilePathMissing",
            "The method Update takes the argument FilePath: -Arguments @{ FilePath = 'C:\\temp\\policy.p7b' }.",
        )));
    };
    ci_policy::apply(call, &path)?;
    call.write(Value::object("PSCustomObject", [("ReturnValue", Value::Int(0))]))
}

fn unknown(call: &mut Call<'_>, class: &str) -> Outcome {
    Err(call.fail(
        ErrorRecord::new(
            Category::MetadataError,
            "HRESULT 0x80041010",
            format!(
                "Invalid class '{class}': this lab has MSFT_HgsClientConfiguration (Get-CimInstance) and \
                 PS_UpdateAndCompareCIPolicy (Invoke-CimMethod, method Update)."
            ),
        )
        .exception("CimException"),
    ))
}
