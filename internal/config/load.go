package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// DefaultFile is read if it exists and no other file is named.
const DefaultFile = "/etc/hatch/hatchd.yaml"

// fileEnv is the variable with the file's path, like the flag --config.
const fileEnv = "HATCH_CONFIG"

// Sources are the inputs of Load.
type Sources struct {
	Args        []string // flags, without the program's name
	Environ     []string // as from os.Environ; empty values are ignored
	DefaultFile string   // read if it exists and no other is named; "" means none
	Executable  string   // path of this program; the agent is in the same directory
}

// FromProcess returns the sources of this process.
func FromProcess(args []string) (Sources, error) {
	executable, err := os.Executable()
	if err != nil {
		return Sources{}, fmt.Errorf("cannot find the path of this program: %w", err)
	}
	return Sources{Args: args, Environ: os.Environ(), DefaultFile: DefaultFile, Executable: executable}, nil
}

// Load reads the configuration. Its error is [Errors] with all invalid settings, or
// [pflag.ErrHelp] if the flags ask for help.
func Load(src Sources) (Config, error) {
	l := loader{env: environment(src.Environ), origins: map[string]origin{}}
	flags, file, err := l.readFlags(src.Args)
	if err != nil {
		return Config{}, err
	}
	fromFile := l.readFile(src, file)
	c := Config{}
	for _, s := range settings {
		l.resolve(&c, s, flags, fromFile)
	}
	l.crossCheck(c)
	if len(l.errs) > 0 {
		return Config{}, l.errs
	}
	l.warnTypos()
	c.DatabaseURL = cmp.Or(c.DatabaseURL, filepath.Join(c.DataDir, databaseFile))
	c.SecretsKeyFile = cmp.Or(c.SecretsKeyFile, filepath.Join(c.DataDir, secretsKeyFile))
	c.AgentPath = cmp.Or(c.AgentPath, filepath.Join(filepath.Dir(cmp.Or(src.Executable, "hatchd")), "hatch-agent"))
	l.storeOrigins(&c)
	return c, nil
}

// SettingError describes one invalid setting.
type SettingError struct {
	Where   string // the variable, flag or key, as the operator wrote it
	Value   string // as given; "" if there is none or it is a secret
	Message string // says which values are valid
}

func (e SettingError) String() string {
	if e.Value == "" {
		return e.Where + ": " + e.Message
	}
	return fmt.Sprintf("%s: %q: %s", e.Where, e.Value, e.Message)
}

// Errors are all invalid settings of a configuration.
type Errors []SettingError

// Error lists all invalid settings, one per line.
func (e Errors) Error() string {
	lines := make([]string, 0, len(e)+1)
	lines = append(lines, "the configuration is invalid:")
	for _, one := range e {
		lines = append(lines, "  "+one.String())
	}
	return strings.Join(lines, "\n")
}

// loader collects errors and warnings while it reads.
type loader struct {
	env      map[string]string
	origins  map[string]origin
	errs     Errors
	warnings []string
}

func (l *loader) fail(where, value, format string, args ...any) {
	l.errs = append(l.errs, SettingError{where, value, fmt.Sprintf(format, args...)})
}

func (l *loader) warn(format string, args ...any) {
	l.warnings = append(l.warnings, fmt.Sprintf(format, args...))
}

func environment(environ []string) map[string]string {
	env := map[string]string{}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if value = strings.TrimSpace(value); value != "" {
			env[name] = value
		}
	}
	return env
}

// Flags returns hatchd's flags, for help texts and completion.
func Flags() *pflag.FlagSet {
	flags := pflag.NewFlagSet("hatchd", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() {} // the caller prints it
	flags.String("config", "", "Configuration file (default "+DefaultFile+" if it exists)")
	for _, s := range settings {
		if s.Flag() != "" {
			flags.String(s.Flag(), s.Default, strings.ReplaceAll(s.Doc, "`", "")+" ["+s.Env+"]")
		}
	}
	return flags
}

// readFlags returns the values of the flags, by setting, and the file that they name.
func (l *loader) readFlags(args []string) (given map[string]string, file string, err error) {
	flags := Flags()
	if err := flags.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return nil, "", err
	} else if err != nil {
		l.fail("flags", "", "%s", err)
		return nil, "", nil
	}
	for _, arg := range flags.Args() {
		l.fail("flags", arg, "hatchd takes no arguments, only flags")
	}
	given = map[string]string{}
	flags.Visit(func(f *pflag.Flag) {
		given[f.Name] = strings.TrimSpace(f.Value.String())
	})
	return given, given["config"], nil
}

// readFile returns the values in the file that is named, or else in the default file if
// that exists.
func (l *loader) readFile(src Sources, named string) map[string]string {
	path := cmp.Or(named, l.env[fileEnv])
	optional := path == ""
	path = cmp.Or(path, src.DefaultFile)
	if path == "" {
		return nil
	}
	values, err := parseFile(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		l.fail(path, "", "%s", err)
		return nil
	}
	for key := range values {
		if !slices.ContainsFunc(settings, func(s Setting) bool { return s.Name == key }) {
			l.fail(path, key, "is not a setting%s", didYouMean(key, names(func(s Setting) string { return s.Name })))
			delete(values, key)
		}
	}
	l.checkFileMode(path, values)
	return values
}

// checkFileMode warns if other users can read a file with secrets.
func (l *loader) checkFileMode(path string, values map[string]string) {
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm()&0o077 == 0 {
		return
	}
	for _, s := range settings {
		if (s.Secret || s.mask != nil) && s.shown(values[s.Name]) != values[s.Name] {
			l.warn("other users can read %s, which has a secret (%s); chmod 600 %s", path, s.Name, path)
		}
	}
}

// resolve sets one setting from the source that takes precedence.
func (l *loader) resolve(c *Config, s Setting, flags, file map[string]string) {
	raw, where, source := s.Default, s.Name, FromDefault
	if v := file[s.Name]; v != "" {
		raw, where, source = v, s.Name, FromFile
	}
	if v, name := l.fromEnv(s); v != "" {
		raw, where, source = v, name, FromEnv
	}
	if v := flags[s.Flag()]; v != "" && s.Flag() != "" {
		raw, where, source = v, "--"+s.Flag(), FromFlag
	}
	l.origins[s.Name] = origin{raw, source}
	if raw == "" {
		return
	}
	if err := s.set(c, raw); err != nil {
		l.fail(where, s.errorValue(raw), "%s", err)
	}
}

// errorValue returns a value as an error may show it: "" for a secret.
func (s Setting) errorValue(raw string) string {
	if s.Secret || (s.mask != nil && strings.Contains(raw, "@")) {
		return ""
	}
	return raw
}

// fromEnv returns the value of a setting's variable or of one of its aliases.
func (l *loader) fromEnv(s Setting) (value, name string) {
	for _, candidate := range append([]string{s.Env}, s.Aliases...) {
		v := l.env[candidate]
		switch {
		case v == "" || v == value:
		case value != "":
			l.fail(candidate, s.errorValue(v), "is an alias of %s, which has another value; set only one of them", name)
		default:
			value, name = v, candidate
		}
	}
	return value, name
}

// crossCheck checks settings that depend on each other.
func (l *loader) crossCheck(c Config) {
	if (c.DefaultKernelPath == "") != (c.DefaultRootfsPath == "") {
		l.fail("HATCH_DEFAULT_KERNEL_PATH, HATCH_DEFAULT_ROOTFS_PATH", "", "must be set together")
	}
	if c.SSHPortMin > c.SSHPortMax && c.SSHPortMax != 0 {
		l.fail("HATCH_SSH_PORT_MIN", fmt.Sprint(c.SSHPortMin), "must be at most HATCH_SSH_PORT_MAX, which is %d", c.SSHPortMax)
	}
	if c.PortMin > c.PortMax && c.PortMax != 0 {
		l.fail("HATCH_PORT_MIN", fmt.Sprint(c.PortMin), "must be at most HATCH_PORT_MAX, which is %d", c.PortMax)
	}
	if c.UIDMin > c.UIDMax && c.UIDMax != 0 {
		l.fail("HATCH_UID_MIN", fmt.Sprint(c.UIDMin), "must be at most HATCH_UID_MAX, which is %d", c.UIDMax)
	}
	l.checkTLS(c)
	l.checkOIDC(c.OIDC)
	var port int
	if _, err := fmt.Sscan(c.HTTPAddr[strings.LastIndex(c.HTTPAddr, ":")+1:], &port); err == nil && port >= c.SSHPortMin && port <= c.SSHPortMax && c.SSHPortMin > 0 {
		l.fail("HATCH_HTTP_ADDR", c.HTTPAddr, "its port must not be one of VMs' SSH ports, HATCH_SSH_PORT_MIN %d to HATCH_SSH_PORT_MAX %d", c.SSHPortMin, c.SSHPortMax)
	}
}

// checkTLS checks that TLS has certificates, and certificates have TLS.
func (l *loader) checkTLS(c Config) {
	if (c.TLSCert == "") != (c.TLSKey == "") {
		l.fail("HATCH_TLS_CERT, HATCH_TLS_KEY", "", "must be set together")
	}
	source := c.TLSCert != "" || c.ACMEEmail != ""
	if c.TLSAddr != "" && !source {
		l.fail("HATCH_TLS_ADDR", c.TLSAddr, "needs a certificate: set HATCH_TLS_CERT and HATCH_TLS_KEY, or HATCH_ACME_EMAIL to obtain some")
	}
	if c.TLSAddr == "" && source {
		l.fail("HATCH_TLS_ADDR", "", "must be set for a certificate to be used, as in :443")
	}
	if (c.HTTPTLSCert == "") != (c.HTTPTLSKey == "") {
		l.fail("HATCH_HTTP_TLS_CERT, HATCH_HTTP_TLS_KEY", "", "must be set together")
	}
	if c.HTTPTLSClientCA != "" && c.HTTPTLSCert == "" {
		l.fail("HATCH_HTTP_TLS_CLIENT_CA", c.HTTPTLSClientCA, "needs TLS: set HATCH_HTTP_TLS_CERT and HATCH_HTTP_TLS_KEY")
	}
	if (c.ACMEDNSServer == "") != (c.ACMEDNSKey == "") {
		l.fail("HATCH_ACME_DNS_SERVER, HATCH_ACME_DNS_KEY", "", "must be set together")
	}
}

// storeOrigins stores the sources of values, including defaults that depend on other
// settings.
func (l *loader) storeOrigins(c *Config) {
	for name, effective := range map[string]string{"database_url": c.DatabaseURL, "secrets_key_file": c.SecretsKeyFile, "agent_path": c.AgentPath} {
		if o := l.origins[name]; o.raw == "" {
			l.origins[name] = origin{effective, FromDefault}
		}
	}
	l.origins["data_dir"] = origin{filepath.Clean(c.DataDir), l.origins["data_dir"].source}
	c.origins, c.Warnings = l.origins, l.warnings
}
