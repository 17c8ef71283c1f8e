//! Networks with random weights, and their predictions, for the tests of exported models.

use dw::config::{self, Config};
use dw::data::images::{Images, Normalisation};
use dw::export::{Form, Network, export};
use dw::model::Detector;
use dw::model::heads::{Scored, scored};
use dw::model::params::{Params, Role};
use tch::{Device, Kind, Tensor};

use super::onnx::Batch;

/// Sets weights with which every layer has an effect. With the initial weights, all residual
/// branches are 0, and scores and distances are almost the same everywhere.
fn randomise(params: &mut Params, channels: i64) {
    // Gives the outputs of narrow towers the same spread as those with 256 channels.
    let spread = 0.05 * (256.0 / channels as f64).sqrt();
    tch::no_grad(|| {
        for e in &mut params.entries {
            let (t, name) = (&mut e.tensor, e.name.as_str());
            let is_norm = name.contains(".bn") || name.contains(".gn");
            let is_norm = is_norm || name.contains("downsample.1");
            let is_score = name.contains("cls") && name.ends_with("bias") && !is_norm;
            let _ = match e.role {
                Role::Counter => continue,
                _ if name.ends_with("running_mean") => t.normal_(0.0, 0.1),
                _ if name.ends_with("running_var") => t.uniform_(0.5, 1.5),
                _ if name.ends_with("scale") => t.uniform_(0.8, 1.2),
                _ if is_norm && name.ends_with("weight") => t.uniform_(0.3, 0.7),
                _ if is_norm => t.normal_(0.0, 0.1),
                _ if name.contains("conv_offset") => t.normal_(0.0, spread / 5.0),
                // Distances are products of two exponentials, which would amplify rounding.
                _ if name.contains("vfnet_reg") && t.dim() == 4 => t.normal_(0.0, spread / 4.0),
                _ if is_score => t.uniform_(-2.0, 0.0),
                _ if name.starts_with("bbox_head") && t.dim() == 4 => t.normal_(0.0, spread),
                _ => continue,
            };
        }
    });
}

/// A network of a built-in configuration with random weights, for three classes.
pub struct Exported {
    pub config: Config,
    pub detector: Detector,
    classes: Vec<String>,
}

impl Exported {
    pub fn new(name: &str, sets: &[&str]) -> Self {
        let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
        let config = config::load(name, &sets).unwrap();
        tch::manual_seed(3);
        let classes: Vec<String> = ["circle", "square", "star"].map(str::to_owned).into();
        let mut detector = Detector::new(&config.model, classes.len(), Kind::Float, Device::Cpu);
        config.assign.build(&mut detector.params, classes.len() as i64).attach(&mut detector);
        randomise(&mut detector.params, config.model.channels);
        Self { config, detector, classes }
    }

    /// The ONNX model.
    pub fn export(&self, form: Form) -> dw::Result<Vec<u8>> {
        let network = Network {
            detector: &self.detector,
            model: &self.config.model,
            classes: &self.classes,
            input: &self.config.data,
            eval: &self.config.eval,
        };
        export(&network, form)
    }

    /// Writes `model.onnx` into a new folder.
    pub fn write(&self, form: Form) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.onnx"), self.export(form).unwrap()).unwrap();
        folder
    }
}

/// Images without padding, and a batch of four whose images have different sizes.
pub fn batches(h: i64, w: i64) -> Vec<Batch> {
    let noise = |n: i64| {
        let coarse = Tensor::rand([n, 3, h / 8, w / 8], (Kind::Float, Device::Cpu)) * 255.0;
        coarse.upsample_bilinear2d([h, w], false, None, None).to_kind(Kind::Uint8)
    };
    let padded = [[h, w], [h - 5, w], [h, w - 31], [h - 9, w - 17]];
    vec![
        Batch { images: noise(1), sizes: None },
        Batch { images: noise(4), sizes: Some(padded.to_vec()) },
    ]
}

/// Raw predictions of the program.
pub fn predict(detector: &Detector, batch: &Batch) -> Scored {
    let size = batch.images.size();
    let (h, w) = (size[2] as u32, size[3] as u32);
    let sizes: Vec<(u32, u32)> = match &batch.sizes {
        Some(sizes) => sizes.iter().map(|s| (s[1] as u32, s[0] as u32)).collect(),
        None => vec![(w, h); size[0] as usize],
    };
    let pixels = batch.images.permute([0, 2, 3, 1]).contiguous();
    let images = Images::new(&sizes, (w, h), Device::Cpu, |i, out| {
        pixels.get(i as i64).contiguous().copy_data(out, out.len());
        Ok(())
    });
    tch::no_grad(|| {
        let x = Normalisation::new(Device::Cpu).apply(&images.unwrap(), Kind::Float);
        scored(&detector.forward(&x, false), detector.inference.rank)
    })
}
