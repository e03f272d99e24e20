//! Other machines: script blocks that run there, and sessions.

use std::rc::Rc;

use crate::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome, Stop},
    eval::pipeline::BlockStage,
    session::Runspace,
    syntax,
    value::{Block, Value, convert},
    world::Machine,
};

const TRANSPORT: &str = "machines of the lab reach each other directly";
const NOT_A_MACHINE: &str = "name the machine: -ComputerName";

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Invoke-Command",
        implemented: &[
            "ScriptBlock",
            "NoNewScope",
            "InputObject",
            "ArgumentList",
            "Session",
            "FilePath",
            "ComputerName",
        ],
        without_effect: &[
            ("ThrottleLimit", "machines are asked one after the other"),
            ("HideComputerName", "PSComputerName is kept and never drawn"),
            ("Credential", "the lab's administrator may enter every machine"),
            ("Authentication", TRANSPORT),
            ("Port", TRANSPORT),
            ("UseSSL", TRANSPORT),
            ("ConfigurationName", "every endpoint has all cmdlets of its machine"),
            ("ApplicationName", TRANSPORT),
            ("SessionOption", TRANSPORT),
            ("EnableNetworkAccess", TRANSPORT),
            ("CertificateThumbprint", TRANSPORT),
        ],
        rejected: &[
            ("AsJob", "there are no background jobs"),
            ("JobName", "there are no background jobs"),
            ("InDisconnectedSession", "sessions are never disconnected"),
            ("SessionName", "sessions are never disconnected"),
            ("ConnectionUri", NOT_A_MACHINE),
            ("AllowRedirection", NOT_A_MACHINE),
            ("VMId", "guests run no PowerShell here"),
            ("VMName", "guests run no PowerShell here"),
            ("RunAsAdministrator", "there are no containers on the machines"),
            ("ContainerId", "there are no containers on the machines"),
        ],
        run: Run::All(invoke_command),
    },
    Implementation {
        cmdlet: "Enter-PSSession",
        implemented: &["ComputerName", "Session", "Id", "Name"],
        without_effect: &[
            ("Credential", "the lab's administrator may enter every machine"),
            ("Authentication", TRANSPORT),
            ("Port", TRANSPORT),
            ("UseSSL", TRANSPORT),
            ("ConfigurationName", "every endpoint has all cmdlets of its machine"),
            ("ApplicationName", TRANSPORT),
            ("SessionOption", TRANSPORT),
            ("EnableNetworkAccess", TRANSPORT),
            ("CertificateThumbprint", TRANSPORT),
        ],
        rejected: &[
            ("ConnectionUri", NOT_A_MACHINE),
            ("AllowRedirection", NOT_A_MACHINE),
            ("InstanceId", NOT_A_MACHINE),
            ("VMId", "guests run no PowerShell here"),
            ("VMName", "guests run no PowerShell here"),
            ("ContainerId", "there are no containers on the machines"),
            ("RunAsAdministrator", "there are no containers on the machines"),
        ],
        run: Run::Each(enter),
    },
    Implementation {
        cmdlet: "Exit-PSSession",
        implemented: &[],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(|call| {
            call.session.flush();
            call.session.leave();
            Ok(())
        }),
    },
    Implementation {
        cmdlet: "New-PSSession",
        implemented: &["ComputerName", "Name"],
        without_effect: &[
            ("Credential", "the lab's administrator may enter every machine"),
            ("Authentication", TRANSPORT),
            ("Port", TRANSPORT),
            ("UseSSL", TRANSPORT),
            ("ConfigurationName", "every endpoint has all cmdlets of its machine"),
            ("ApplicationName", TRANSPORT),
            ("SessionOption", TRANSPORT),
            ("EnableNetworkAccess", TRANSPORT),
            ("CertificateThumbprint", TRANSPORT),
            ("ThrottleLimit", "machines are asked one after the other"),
        ],
        rejected: &[
            ("ConnectionUri", NOT_A_MACHINE),
            ("AllowRedirection", NOT_A_MACHINE),
            ("Session", "sessions are not copied; give -ComputerName"),
            ("VMId", "guests run no PowerShell here"),
            ("VMName", "guests run no PowerShell here"),
            ("ContainerId", "there are no containers on the machines"),
            ("RunAsAdministrator", "there are no containers on the machines"),
        ],
        run: Run::Each(new_session),
    },
    Implementation {
        cmdlet: "Get-PSSession",
        implemented: &["Name", "ComputerName", "Id"],
        without_effect: &[
            ("Credential", "the lab's administrator may enter every machine"),
            ("Authentication", TRANSPORT),
            ("Port", TRANSPORT),
            ("UseSSL", TRANSPORT),
            ("ApplicationName", TRANSPORT),
            ("SessionOption", TRANSPORT),
            ("CertificateThumbprint", TRANSPORT),
            ("ThrottleLimit", "machines are asked one after the other"),
        ],
        rejected: &[
            ("ConfigurationName", "every endpoint has all cmdlets of its machine"),
            ("State", "sessions are open until they are removed"),
            ("InstanceId", "give the number of the session: -Id"),
            ("ConnectionUri", NOT_A_MACHINE),
            ("AllowRedirection", NOT_A_MACHINE),
            ("ContainerId", "there are no containers on the machines"),
            ("VMId", "guests run no PowerShell here"),
            ("VMName", "guests run no PowerShell here"),
        ],
        run: Run::Each(get_session),
    },
    Implementation {
        cmdlet: "Remove-PSSession",
        implemented: &["Id", "Session", "Name", "ComputerName"],
        without_effect: &[],
        rejected: &[
            ("ContainerId", "there are no containers on the machines"),
            ("VMId", "guests run no PowerShell here"),
            ("VMName", "guests run no PowerShell here"),
            ("InstanceId", "give the number of the session: -Id"),
        ],
        run: Run::Each(remove_session),
    },
];

/// Where a block is to run: a machine with a state that is kept, or with a fresh one.
enum Target {
    Fresh(Machine),
    Kept(i64),
}

fn invoke_command(call: &mut Call<'_>, input: Vec<Value>) -> Outcome {
    let block = match (call.get("ScriptBlock"), call.text("FilePath")) {
        (Some(Value::Block(block)), _) => block,
        (_, Some(path)) => script(call, &path)?,
        _ => return Ok(()),
    };
    let arguments = call.get("ArgumentList").map(|value| value.each()).unwrap_or_default();
    let (names, sessions) = (call.texts("ComputerName"), call.get("Session"));
    let mut targets = Vec::new();
    for name in &names {
        match call.session.find_machine(name) {
            Some(machine) => targets.push(Target::Fresh(machine)),
            None => call.error(unreachable(name))?,
        }
    }
    for session in sessions.iter().flat_map(Value::each) {
        match id_of(&session) {
            Some(id) => targets.push(Target::Kept(id)),
            None => call.error(closed(&session))?,
        }
    }
    if names.is_empty() && sessions.is_none() {
        let mut stage = BlockStage {
            block,
            arguments,
            named: Vec::new(),
            input,
            dot: call.switch("NoNewScope"),
            name: String::new(),
            span: call.place.span,
        };
        let mut output = Vec::new();
        call.session.run_block(&mut stage, &mut output)?;
        return call.write_all(output);
    }
    for target in targets {
        let mut stage = BlockStage {
            block: Rc::clone(&block),
            arguments: arguments.clone(),
            named: Vec::new(),
            input: input.clone(),
            dot: true,
            name: String::new(),
            span: call.place.span,
        };
        let (output, result) = elsewhere(call, target, &mut stage)?;
        call.write_all(output)?;
        match result {
            Err(Stop::Error(record)) => call.error(record)?,
            Err(Stop::Exit(_)) | Ok(()) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// Runs a block on another machine; what it gave, and how it ended.
fn elsewhere(call: &mut Call<'_>, target: Target, stage: &mut BlockStage) -> Outcome<(Vec<Value>, Outcome)> {
    let (runspace, id) = match target {
        Target::Fresh(machine) => (Runspace::on(machine).map_err(|error| call.fail(broken(&error)))?, None),
        Target::Kept(id) => match call.session.remotes.iter_mut().find(|remote| remote.id == id) {
            Some(remote) => match remote.runspace.take() {
                Some(runspace) => (runspace, Some(id)),
                None => return Err(call.fail(closed(&Value::Int(id)))),
            },
            None => return Err(call.fail(closed(&Value::Int(id)))),
        },
    };
    let name = runspace.machine.name.clone();
    call.session.runspaces.push(runspace);
    // A `try` around this call is none of the other machine's.
    let tries = std::mem::take(&mut call.session.tries);
    let mut output = Vec::new();
    let result = call.session.run_block(stage, &mut output);
    call.session.tries = tries;
    let runspace = call.session.runspaces.pop();
    if let Some(remote) = call.session.remotes.iter_mut().find(|remote| Some(remote.id) == id) {
        remote.runspace = runspace;
    }
    for value in &output {
        if let Value::Object(object) = value {
            object.hidden.borrow_mut().set("PSComputerName", Value::text(&name));
        }
    }
    Ok((output, result))
}

fn script(call: &mut Call<'_>, path: &str) -> Outcome<Rc<Block>> {
    let bytes = call.read_file(path)?;
    let source: Rc<str> = super::content::decoded(&bytes).into();
    let file: Rc<str> = path.into();
    match syntax::parse(&source) {
        Ok(script) => Ok(Rc::new(Block {
            script,
            source,
            file: Some(file),
        })),
        Err(error) => Err(ErrorRecord::syntax(&error, source, Some(file)).stop()),
    }
}

fn enter(call: &mut Call<'_>) -> Outcome {
    call.session.flush();
    let machine = match (call.get("Session"), call.integer("Id"), call.text("Name")) {
        (Some(session), _, _) => property(&session, "ComputerName"),
        (None, Some(id), _) => remote_name(call, |_, own| own == id),
        (None, None, Some(name)) => remote_name(call, |own, _| own.eq_ignore_ascii_case(&name)),
        (None, None, None) => call.text("ComputerName"),
    };
    let name = machine.unwrap_or_default();
    match call.session.find_machine(&name) {
        Some(machine) => call.session.enter(machine).map_err(|error| call.fail(broken(&error))),
        None => Err(call.fail(unreachable(&name))),
    }
}

fn remote_name(call: &Call<'_>, wanted: impl Fn(&str, i64) -> bool) -> Option<String> {
    let mut all = call.session.remotes.iter();
    all.find(|remote| wanted(&remote.name, remote.id))
        .map(|remote| remote.computer.clone())
}

fn new_session(call: &mut Call<'_>) -> Outcome {
    let mut names = call.texts("ComputerName");
    if names.is_empty() {
        names.push(call.machine().name.clone());
    }
    let given = call.texts("Name");
    for (index, name) in names.iter().enumerate() {
        let Some(machine) = call.session.find_machine(name) else {
            call.error(unreachable(name))?;
            continue;
        };
        let runspace = Runspace::on(machine).map_err(|error| call.fail(broken(&error)))?;
        let shown = given.get(index).cloned();
        let session = call.session.open(runspace, shown);
        call.write(session)?;
    }
    Ok(())
}

fn get_session(call: &mut Call<'_>) -> Outcome {
    let (names, computers, ids) = (call.texts("Name"), call.texts("ComputerName"), call.get("Id"));
    let ids: Vec<String> = ids
        .iter()
        .flat_map(Value::each)
        .map(|id| convert::to_text(&id))
        .collect();
    let any = |wanted: &[String], own: &str| wanted.is_empty() || wanted.iter().any(|w| w.eq_ignore_ascii_case(own));
    let found: Vec<Value> = call
        .session
        .remotes
        .iter()
        .filter(|r| any(&names, &r.name) && any(&computers, &r.computer) && any(&ids, &r.id.to_string()))
        .map(|remote| remote.to_value())
        .collect();
    call.write_all(found)
}

fn remove_session(call: &mut Call<'_>) -> Outcome {
    let (names, computers) = (call.texts("Name"), call.texts("ComputerName"));
    let given: Vec<i64> = call
        .get("Session")
        .iter()
        .flat_map(Value::each)
        .filter_map(|s| id_of(&s))
        .collect();
    let numbers: Vec<String> = call
        .get("Id")
        .iter()
        .flat_map(Value::each)
        .map(|id| convert::to_text(&id))
        .collect();
    if !call.should_process("PSSession", "Remove")? {
        return Ok(());
    }
    call.session.remotes.retain(|remote| {
        let is = |wanted: &[String], own: &str| wanted.iter().any(|w| w.eq_ignore_ascii_case(own));
        !(given.contains(&remote.id)
            || is(&names, &remote.name)
            || is(&computers, &remote.computer)
            || numbers.contains(&remote.id.to_string()))
    });
    Ok(())
}

fn id_of(session: &Value) -> Option<i64> {
    match session {
        Value::Object(object) if object.is("PSSession") => match object.get("Id") {
            Some(Value::Int(id)) => Some(id),
            _ => None,
        },
        _ => None,
    }
}

fn property(value: &Value, name: &str) -> Option<String> {
    match value {
        Value::Object(object) => object.get(name).as_ref().map(convert::to_text),
        _ => None,
    }
}

fn unreachable(name: &str) -> ErrorRecord {
    ErrorRecord::new(
        Category::OpenError,
        "NetworkPathNotFound,PSSessionStateBroken",
        format!(
            "[{name}] Connecting to remote server {name} failed with the following error message : The network path was not \
             found. There is no machine of this name in the lab."
        ),
    )
    .about(Value::text(name))
    .exception("PSRemotingTransportException")
}

fn closed(session: &Value) -> ErrorRecord {
    ErrorRecord::new(
        Category::InvalidOperation,
        "PSSessionNotOpen",
        "The session is not open any more. New-PSSession opens one.",
    )
    .about(session.clone())
}

fn broken(error: &anyhow::Error) -> ErrorRecord {
    ErrorRecord::new(
        Category::OpenError,
        "PSSessionStateBroken",
        format!("The machine cannot be entered: {error:#}."),
    )
}
