//! `spnn pooled`.

use super::simulate::Plan;
use super::{CliError, Pooled};
use spnn::pooled;

#[expect(clippy::print_stdout, reason = "what this command is for")]
pub(crate) fn run(args: &Pooled) -> Result<(), CliError> {
    let plan = Plan::read(args.session.as_deref(), &args.overrides, None)?;
    let session = plan.file.config()?;
    if let Some(party) = args.party.filter(|p| *p >= session.parties) {
        return Err(CliError::Usage(format!("--party {party}: the session has {} parties", session.parties)));
    }
    let trained = pooled::train(&session, &plan.sources, args.party)?;
    if args.json {
        let text = serde_json::to_string(&trained).unwrap_or_default();
        println!("{text}");
        return Ok(());
    }
    for e in &trained.epochs {
        println!("epoch {:>4}  loss {:.5}  {:.4} s", e.epoch, e.train_loss, e.seconds);
    }
    let columns = args.party.map_or("all parties".to_owned(), |p| format!("party-{p}"));
    println!("columns of {columns}: {}", trained.features);
    if let Some(test) = trained.test {
        println!("test: {}", super::progress::metrics(&test));
    }
    Ok(())
}
