//! A user and the file of its password, as flags of several registries.

use std::marker::PhantomData;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};
use registry::Credentials;

/// The names of the two flags.
pub trait LoginFlags {
    /// Of the user.
    const USER: &'static str;
    /// Of the file.
    const PASSWORD_FILE: &'static str;
    /// Who the user is.
    const WHO: &'static str;
    /// The id of another flag that has to be there.
    const NEEDS: Option<&'static str> = None;
}

/// Both of them, or none.
#[derive(Debug, Clone, Default)]
pub struct Login<F> {
    user: Option<String>,
    password_file: Option<PathBuf>,
    flags: PhantomData<F>,
}

impl<F> Login<F> {
    /// The credentials that they name; the password is read when it is needed.
    pub fn credentials(&self) -> Option<Credentials> {
        self.user.as_ref().map(|user| Credentials {
            username: user.clone(),
            password: None,
            password_file: self.password_file.clone(),
            password_secret: None,
        })
    }
}

impl<F: LoginFlags> FromArgMatches for Login<F> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Login<F>, clap::Error> {
        Ok(Login {
            user: matches.get_one(F::USER).cloned(),
            password_file: matches.get_one(F::PASSWORD_FILE).cloned(),
            flags: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Login::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<F: LoginFlags> Args for Login<F> {
    fn augment_args(command: Command) -> Command {
        let user = Arg::new(F::USER)
            .long(F::USER)
            .value_name("NAME")
            .requires(F::PASSWORD_FILE)
            .help(format!(
                "{}; its password is in --{}",
                F::WHO,
                F::PASSWORD_FILE
            ));
        let user = F::NEEDS.into_iter().fold(user, Arg::requires);
        let file = Arg::new(F::PASSWORD_FILE)
            .long(F::PASSWORD_FILE)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .requires(F::USER)
            .help("File of that password");
        command.arg(user).arg(file)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Login::<F>::augment_args(command)
    }
}

/// `--nacosUser`.
#[derive(Debug, Clone, Copy, Default)]
pub struct NacosLogin;

impl LoginFlags for NacosLogin {
    const USER: &'static str = "nacosUser";
    const PASSWORD_FILE: &'static str = "nacosPasswordFile";
    const WHO: &'static str = "User that Nacos' clients have to log in as";
}

/// `--zookeeperUser`.
#[derive(Debug, Clone, Copy, Default)]
pub struct ZookeeperLogin;

impl LoginFlags for ZookeeperLogin {
    const USER: &'static str = "zookeeperUser";
    const PASSWORD_FILE: &'static str = "zookeeperPasswordFile";
    const WHO: &'static str = "User of the scheme digest that ZooKeeper's clients have to be";
}

/// `--registryStoreUser`.
#[derive(Debug, Clone, Copy, Default)]
pub struct StoreLogin;

impl LoginFlags for StoreLogin {
    const USER: &'static str = "registryStoreUser";
    const PASSWORD_FILE: &'static str = "registryStorePasswordFile";
    const WHO: &'static str = "User of that etcd";
    const NEEDS: Option<&'static str> = Some("url");
}
