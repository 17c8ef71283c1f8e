//! The prediction as text.

use super::inputs::Inputs;

/// Table of the predictions for all numbers of GPUs, and a note on the learning rate.
pub fn table(inputs: &Inputs) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    let fixed = [
        "GPUs",
        "batch",
        "lr",
        "comm ms",
        "exposed",
        "straggler",
        "step ms",
        "images/s",
        "efficiency",
    ];
    let hours = inputs.epochs.iter().map(|e| format!("h, {e} epochs"));
    table.set_header(fixed.map(String::from).into_iter().chain(hours));
    for p in inputs.gpus.0.iter().map(|gpus| inputs.predict(*gpus)) {
        let times = [p.comm_ms, p.exposed_ms, p.straggler_ms, p.step_ms, p.images_per_s];
        let mut cells =
            vec![p.gpus.to_string(), p.global_batch.to_string(), format!("{:.4}", p.lr)];
        cells.extend(times.map(|v| format!("{v:.1}")));
        cells.push(format!("{:.1} %", 100.0 * p.efficiency));
        cells.extend(p.hours.iter().map(|h| format!("{h:.2}")));
        table.add_row(cells);
    }
    format!(
        "{table}\nlr: linear scaling rule (train.lr_scaling = \"linear\"). No AP is published for \
         global batches far above 16: expect to need a larger train.warmup_steps, and a lower AP."
    )
}

#[cfg(test)]
mod tests {
    use super::super::inputs::tests::inputs;
    use super::super::{Gpus, Inputs};
    use super::*;

    #[test]
    fn table_has_a_column_for_each_number_of_epochs() {
        let text = table(&Inputs { gpus: Gpus(vec![8]), epochs: vec![12, 24], ..inputs() });
        assert!(text.contains("12 epochs") && text.contains("24 epochs"), "{text}");
    }
}
