//! The configurations that are compiled in. A test compares the list with the files
//! in `configs`.

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../configs/", $name, ".toml")))),*]
    };
}

/// Name and TOML text of each configuration. A row of a table of the DW paper is named
/// `tables/TABLE/ROW`.
pub const BUILT_IN: &[(&str, &str)] = files![
    "dw_r50_fpn_1x",
    "dw_r50_fpn_worefine_1x",
    "dw_r50_fpn_mstrain_2x",
    "dw_r50_fpn_dconv_c3-c5_mstrain_2x",
    "dw_r101_fpn_1x",
    "dw_r101_fpn_mstrain_2x",
    "dw_r101_fpn_worefine_mstrain_2x",
    "dw_r101_fpn_dconv_c3-c5_mstrain_2x",
    "dw_r101_fpn_dconv_c3-c5_worefine_mstrain_2x",
    "dw_x101_64x4d_fpn_mstrain_2x",
    "dw_x101_64x4d_fpn_worefine_mstrain_2x",
    "fcos_r50_fpn_1x",
    "fcos_plain_r50_fpn_1x",
    "atss_r50_fpn_1x",
    "gfl_r50_fpn_1x",
    "vfl_r50_fpn_1x",
    "vfnet_r50_fpn_1x",
    "tal_r50_fpn_1x",
    "tood_r50_fpn_1x",
    "dw_tood_r50_fpn_1x",
    "autoassign_r50_fpn_1x",
    "autoassign_detach_r50_fpn_1x",
    "autoassign_loss_weight_r50_fpn_1x",
    "paa_r50_fpn_1x",
    "ota_r50_fpn_1x",
    "simota_r50_fpn_1x",
    "gflv2_atss_r50_fpn_1x",
    "gflv2_fcos_r50_fpn_1x",
    "overfit16",
    "demo",
    "smoke",
    "neu_det",
    "tables/table1/01_dw",
    "tables/table1/02_gfl",
    "tables/table1/03_vfl",
    "tables/table1/04_tood",
    "tables/table1/05_musu",
    "tables/table1_native/01_dw",
    "tables/table1_native/02_gfl",
    "tables/table1_native/03_vfl",
    "tables/table1_native/04_tood",
    "tables/table1_native/05_musu",
    "tables/table2/01_beta5_mu5",
    "tables/table2/02_beta3_mu5",
    "tables/table2/03_beta4_mu5",
    "tables/table2/04_beta6_mu5",
    "tables/table2/05_beta7_mu5",
    "tables/table2/06_beta5_mu3",
    "tables/table2/07_beta5_mu4",
    "tables/table2/08_beta5_mu6",
    "tables/table2/09_beta5_mu7",
    "tables/table3/01_gamma2_2",
    "tables/table3/02_gamma1_1",
    "tables/table3/03_gamma1_2",
    "tables/table3/04_gamma1_3",
    "tables/table3/05_gamma2_1",
    "tables/table3/06_gamma2_3",
    "tables/table3/07_gamma3_1",
    "tables/table3/08_gamma3_2",
    "tables/table3/09_gamma3_3",
    "tables/table4/01_soft",
    "tables/table4/02_radius1.0",
    "tables/table4/03_radius1.3",
    "tables/table4/04_radius1.5",
    "tables/table4/05_radius1.7",
    "tables/table4/06_top5",
    "tables/table4/07_top9",
    "tables/table4/08_top15",
    "tables/table4/09_top20",
    "tables/table5/01_full",
    "tables/table5/02_p_only",
    "tables/table5/03_i_only",
    "tables/table5/04_one_minus_pos",
    "tables/table5/05_none",
    "tables/table6/01_dw",
    "tables/table6/02_dw_refine",
    "tables/table6/03_fcos",
    "tables/table6/04_atss",
    "tables/table6/05_paa",
    "tables/table6/06_ota",
    "tables/table6/07_autoassign",
    "tables/table6/08_autoassign_detach",
    "tables/table6/09_autoassign_loss_weight",
    "tables/table6/10_gfl",
    "tables/table6/11_vfl",
    "tables/table6/12_gflv2_fcos",
    "tables/table6/13_gflv2_atss",
    "tables/table6/14_tal",
    "tables/table6/15_simota",
    "tables/table6/16_tood",
    "tables/table6/17_vfnet",
    "tables/table6/18_dw_tood",
    "tables/table7/01_r101",
    "tables/table7/02_r101_refine",
    "tables/table7/03_r101_dcn",
    "tables/table7/04_r101_dcn_refine",
    "tables/table7/05_x101",
    "tables/table7/06_x101_refine",
];

/// The names of the configurations that are not rows of tables.
pub fn names() -> Vec<&'static str> {
    BUILT_IN.iter().map(|(name, _)| *name).filter(|name| !name.contains('/')).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn collect(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                collect(&entry.path(), &format!("{name}/"), found);
            } else {
                found.insert(name.trim_end_matches(".toml").to_owned());
            }
        }
    }

    #[test]
    fn the_list_is_that_of_the_files() {
        let mut files = BTreeSet::new();
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs"), "", &mut files);
        assert_eq!(files, BUILT_IN.iter().map(|(name, _)| (*name).to_owned()).collect());
    }
}
