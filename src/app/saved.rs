//! Weights to evaluate or draw, together with the configuration that they belong to.

use std::path::{Path, PathBuf};

use dw_base::text::shown;
use dw_shards::coco::Category;
use dw_weights::Weights;
use tch::Device;

use crate::assign::{Strategy, is_state};
use crate::config::{self, Config};
use crate::data::Dataset;
use crate::data::dataset::same_categories;
use crate::device::{Precision, keep_freed};
use crate::eval::Predictor;
use crate::model::{Detector, Params, weights};
use crate::train::checkpoint;
use crate::{Error, Result};

/// Saved weights and their configuration.
#[derive(Debug)]
pub struct Saved {
    /// The run's configuration, or the one that was named for a weight file.
    pub config: Config,
    /// The run's categories by label; a weight file has none unless they were set.
    categories: Option<Vec<Category>>,
    /// Whether this is a weight file.
    is_file: bool,
    weights: PathBuf,
}

impl Saved {
    /// Finds a checkpoint by its folder or work directory, or takes a weight file together with
    /// the name of its configuration. `sets`: `key.path=value`, applied to the configuration.
    ///
    /// # Errors
    /// A path that is neither, a weight file without `config`, or a checkpoint with it.
    pub fn find(path: &Path, config: Option<&str>, sets: &[String]) -> Result<Self> {
        if !path.exists() {
            return Err(Error::Usage(format!(
                "{}: no such file or folder\nhint: expected a work directory, a checkpoint folder \
                 or a weight file",
                path.display()
            )));
        }
        if path.is_file() {
            let Some(name) = config else {
                return Err(Error::Usage(format!(
                    "{}: a weight file does not contain the configuration of its network\n\
                     hint: name it, as --config dw_r50_fpn_1x",
                    path.display()
                )));
            };
            let config = config::load(name, sets)?;
            let weights = path.to_owned();
            return Ok(Self { config, categories: None, is_file: true, weights });
        }
        let c = checkpoint::find(path)?;
        if config.is_some() {
            return Err(Error::Usage(format!(
                "{}: --config is for weight files; a checkpoint contains its configuration\n\
                 hint: change single keys with --set",
                path.display()
            )));
        }
        let own = config::from_toml(&c.config, &c.path)?;
        let config = config::with_sets(&own, sets)?;
        check_network(&own, &config, path)?;
        tracing::info!("weights: {} (step {})", shown(c.path.display()), c.state.step);
        Ok(Self { config, categories: Some(c.state.categories), is_file: false, weights: c.path })
    }

    /// Builds the network with these weights, ready to detect on `data`.
    ///
    /// # Errors
    /// Damaged weights, weights of another network, or categories other than those of `data`.
    pub fn detector(&self, data: &Dataset, device: Device) -> Result<Detector> {
        let file = Weights::open(&self.weights)?;
        if let Some(own) = &self.categories {
            same_categories(own, data.categories(), "the checkpoint", "the data")?;
        } else {
            same_names(&file, data.categories())?;
        }
        self.build(&file, data.categories().len(), device)
    }

    /// Whether these are the weights of a file rather than of a checkpoint.
    pub fn is_file(&self) -> bool {
        self.is_file
    }

    /// Sets the categories of a weight file to those of data; its class names, if it has any, must
    /// be the same.
    ///
    /// # Errors
    /// A file that cannot be read, or other class names.
    pub fn use_categories_of(&mut self, data: &[Category]) -> Result<()> {
        same_names(&Weights::open(&self.weights)?, data)?;
        self.categories = Some(data.to_vec());
        Ok(())
    }

    /// Sets the names of the classes by label; category ids count from 1. They may differ from the
    /// names in the file, but not in number.
    ///
    /// # Errors
    /// A file that cannot be read, or that names another number of classes.
    pub fn set_class_names(&mut self, names: &[String]) -> Result<()> {
        let file = Weights::open(&self.weights)?;
        if let Some(own) = file.classes.as_ref().filter(|own| own.len() != names.len()) {
            return Err(Error::Usage(format!(
                "--classes: expected {} names, as in {}, found {}",
                own.len(),
                file.path.display(),
                names.len()
            )));
        }
        self.categories = Some(numbered(names));
        Ok(())
    }

    /// Where the weights are: the file or the checkpoint folder.
    pub fn path(&self) -> &Path {
        &self.weights
    }

    /// Builds the network with these weights, ready to detect on any pictures. A checkpoint has the
    /// categories of its training data; for the class names in a weight file, category ids count
    /// from 1.
    ///
    /// # Errors
    /// Damaged weights, weights of another network, a weight file without class names.
    pub fn predictor(&self, device: Device) -> Result<Predictor> {
        let file = Weights::open(&self.weights)?;
        let own = || {
            let categories = numbered(file.classes.as_deref()?);
            tracing::info!(
                "{}: the file has class names, but no category ids: they count from 1\n\
                 hint: --data OUT, the pack that the network was trained on, has the ids",
                self.weights.display()
            );
            Some(categories)
        };
        let categories = self.categories.clone().or_else(own).ok_or_else(|| self.no_classes())?;
        let detector = self.build(&file, categories.len(), device)?;
        let (input, eval) = (self.config.data.clone(), self.config.eval.clone());
        Ok(Predictor { detector, categories, input, eval })
    }

    fn no_classes(&self) -> Error {
        Error::Usage(format!(
            "{}: the weight file has no class names\n\
             hint: name them with --classes FILE, one name per line, or --data OUT, the pack that \
             the network was trained on",
            self.weights.display()
        ))
    }

    /// Builds the network with these weights on the CPU in f32, and returns it with the names of
    /// its classes by label.
    ///
    /// # Errors
    /// Damaged weights, weights of another network, a weight file without class names.
    pub fn detector_alone(&self) -> Result<(Detector, Vec<String>)> {
        let file = Weights::open(&self.weights)?;
        let own = self.categories.as_ref().map(|c| c.iter().map(|c| c.name.clone()).collect());
        let names = own.or_else(|| file.classes.clone()).ok_or_else(|| self.no_classes())?;
        Ok((self.network(&file, names.len(), Precision::F32, Device::Cpu)?, names))
    }

    /// The strategy of the network, with the state that `detector` has.
    pub fn strategy(&self, detector: &Detector, classes: usize) -> Strategy {
        let own = &detector.params;
        let mut params = Params::new(own.kind, own.device);
        let strategy = self.config.assign.build(&mut params, classes as i64);
        for entry in &mut params.entries {
            if let Some(saved) = own.entries.iter().find(|e| e.name == entry.name) {
                tch::no_grad(|| entry.tensor.copy_(&saved.tensor));
            }
        }
        strategy
    }

    /// Builds the network in the precision of its run (see [`Precision::for_evaluation`]).
    fn build(&self, file: &Weights, classes: usize, device: Device) -> Result<Detector> {
        let precision = self.config.train.precision.for_evaluation(device);
        precision.apply(device)?;
        tracing::info!("precision of the network: {} on {device:?}", precision.name());
        self.network(file, classes, precision, device)
    }

    fn network(
        &self,
        file: &Weights,
        classes: usize,
        precision: Precision,
        device: Device,
    ) -> Result<Detector> {
        let mut detector = Detector::new(&self.config.model, classes, precision.kind(), device);
        detector.activations = precision.activations();
        let strategy = self.config.assign.build(&mut detector.params, classes as i64);
        strategy.attach(&mut detector);
        let mut report = weights::load(file, &mut detector.params, |_| true)?;
        let other = report.of_another_network(is_state);
        if !other.is_empty() {
            return Err(Error::Usage(format!(
                "{}: the file is of another network: {} of its tensors are not in this one, the \
                 first is `{}`\nhint: check --config",
                self.weights.display(),
                other.len(),
                shown(other[0])
            )));
        }
        // A count of batches that is never read; files of older programs lack it.
        report.missing.retain(|name| !name.ends_with(".num_batches_tracked"));
        if !report.complete() {
            return Err(Error::Usage(format!(
                "{}: weights of the network are missing from the file or have another shape: \
                 {report}\nhint: check --config and the number of classes",
                self.weights.display()
            )));
        }
        keep_freed(device);
        Ok(detector)
    }
}

/// Checks that the options do not change the network of a checkpoint. Its tensors may also fit
/// another network, which would compute something else.
fn check_network(own: &Config, requested: &Config, path: &Path) -> Result<()> {
    let (changes, _) = config::identity::changes(own, requested);
    let fixed = |key: &str| key.starts_with("model.") || key == "assign.kind";
    let Some(change) = changes.iter().find(|c| fixed(&c.key)) else { return Ok(()) };
    Err(Error::Usage(format!(
        "{}: --set cannot change the network of a checkpoint ({change})",
        path.display()
    )))
}

/// Categories of these names, with ids from 1.
fn numbered(names: &[String]) -> Vec<Category> {
    let category = |(name, id): (&String, i64)| Category { id, name: name.clone() };
    names.iter().zip(1..).map(category).collect()
}

/// Checks that the class names of a weight file, if it has any, are those of the data in the same
/// order.
fn same_names(file: &Weights, categories: &[Category]) -> Result<()> {
    let path = file.path.display();
    let Some(names) = &file.classes else {
        tracing::info!("{path}: no class names in the file; assuming those of the data");
        return Ok(());
    };
    let ours: Vec<&String> = categories.iter().map(|c| &c.name).collect();
    if names.iter().eq(ours.iter().copied()) {
        tracing::info!("{path}: its {} classes match those of the data", names.len());
        return Ok(());
    }
    let differs = |i: &usize| names.get(*i) != ours.get(*i).copied();
    let label = (0..names.len().max(ours.len())).find(differs).unwrap_or(0);
    let name = |n: Option<&String>| n.map_or("none".to_owned(), |n| format!("`{}`", shown(n)));
    let (found, expected) = (name(names.get(label)), name(ours.get(label).copied()));
    Err(Error::data(
        &file.path,
        format!("class of label {label}"),
        format!(
            "expected {expected} as in the data, found {found}\n\
             hint: rename the categories and pack again"
        ),
    ))
}
