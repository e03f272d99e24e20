use std::time::Duration;

use guarded_host_sim::scenario::testing::FabricBuilder;

#[tokio::test]
async fn a_vm_moves_to_a_host_in_good_standing_only() -> anyhow::Result<()> {
    let fabric = FabricBuilder::new()
        .host("host01")
        .host("host02")
        .vm("books", "host01")
        .start()
        .await?;

    // A refusal is no error: it is what came.
    let attested = fabric.attest("host01").await?;
    assert_eq!(attested.status.as_deref(), Some("Passed"));
    assert!(fabric.start_vm("books").await?.done);

    // A step as a scenario's file has it, with what it must yield.
    fabric
        .step("reboot = { host = \"host02\", dials = { secure_boot = false } }")
        .await?;
    fabric
        .step(
            "migrate = { vm = \"books\", to = \"host02\" }\n\
             expect = { error = \"PolicyEvaluationErrorReply\" }",
        )
        .await?;
    assert!(fabric.prove("books").await?.done);

    // Nine hours take no time; the certificate of the morning has ended by then, and the host has renewed it.
    fabric.wait(Duration::from_secs(9 * 3600)).await?;
    fabric
        .step("status = { host = \"host01\" }\nexpect = { status = \"Passed\" }")
        .await?;
    fabric.stop_vm("books").await?;
    assert!(fabric.start_vm("books").await?.done);

    // What came from whom, byte for byte.
    let asked = fabric.messages();
    assert!(asked.iter().any(|message| message.path.ends_with("rolltransportkey")));
    Ok(())
}
