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

// DefaultFile is read when it is there and no other file is named.
const DefaultFile = "/etc/hatch/hatchd.yaml"

// fileEnv names the file, as the flag --config does.
const fileEnv = "HATCH_CONFIG"

// Sources is where Load looks.
type Sources struct {
	Args        []string // flags, without the program's name
	Environ     []string // as os.Environ returns it; an empty value counts as absent
	DefaultFile string   // read when it is there and no other is named; "" for none
	Executable  string   // path of this program; the agent lies beside it
}

// FromProcess returns the sources of this process.
func FromProcess(args []string) (Sources, error) {
	executable, err := os.Executable()
	if err != nil {
		return Sources{}, fmt.Errorf("cannot tell where this program lies: %w", err)
	}
	return Sources{Args: args, Environ: os.Environ(), DefaultFile: DefaultFile, Executable: executable}, nil
}

// Load reads the configuration. Its error is a [Faults] with everything that
// is wrong, or [pflag.ErrHelp] when the flags ask for help.
func Load(src Sources) (Config, error) {
	l := loader{env: environment(src.Environ), origins: map[string]origin{}}
	flags, file, err := l.readFlags(src.Args)
	if err != nil {
		return Config{}, err
	}
	fromFile := l.readFile(src, file)
	c := Config{}
	for _, s := range settings {
		l.settle(&c, s, flags, fromFile)
	}
	l.crossCheck(c)
	if len(l.faults) > 0 {
		return Config{}, l.faults
	}
	l.warnTypos()
	c.finish(cmp.Or(src.Executable, "hatchd"))
	l.origin(&c)
	return c, nil
}

// Fault is one thing that is wrong.
type Fault struct {
	Where string // the variable, flag or key, as the operator wrote it
	Value string // as given; "" when there is none or it is a secret
	Wrong string // what would be right
}

func (f Fault) String() string {
	if f.Value == "" {
		return f.Where + ": " + f.Wrong
	}
	return fmt.Sprintf("%s: %q: %s", f.Where, f.Value, f.Wrong)
}

// Faults are all that is wrong with a configuration.
type Faults []Fault

// Error lists every fault on a line of its own.
func (f Faults) Error() string {
	lines := make([]string, 0, len(f)+1)
	lines = append(lines, "the configuration has faults:")
	for _, fault := range f {
		lines = append(lines, "  "+fault.String())
	}
	return strings.Join(lines, "\n")
}

// loader gathers faults and warnings while it reads.
type loader struct {
	env      map[string]string
	origins  map[string]origin
	faults   Faults
	warnings []string
}

func (l *loader) fault(where, value, format string, args ...any) {
	l.faults = append(l.faults, Fault{where, value, fmt.Sprintf(format, args...)})
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
	flags.String("config", "", "Configuration file (default "+DefaultFile+" when it is there)")
	for _, s := range settings {
		if s.Flag() != "" {
			flags.String(s.Flag(), s.Default, strings.ReplaceAll(s.Doc, "`", "")+" ["+s.Env+"]")
		}
	}
	return flags
}

// readFlags returns the values that flags give, by setting, and the file they name.
func (l *loader) readFlags(args []string) (given map[string]string, file string, err error) {
	flags := Flags()
	if err := flags.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return nil, "", err
	} else if err != nil {
		l.fault("flags", "", "%s", err)
		return nil, "", nil
	}
	for _, arg := range flags.Args() {
		l.fault("flags", arg, "hatchd takes flags only")
	}
	given = map[string]string{}
	flags.Visit(func(f *pflag.Flag) {
		given[f.Name] = strings.TrimSpace(f.Value.String())
	})
	return given, given["config"], nil
}

// readFile returns the values of the file that is named, or else of the
// default file if it is there.
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
		l.fault(path, "", "%s", err)
		return nil
	}
	for key := range values {
		if !slices.ContainsFunc(settings, func(s Setting) bool { return s.Name == key }) {
			l.fault(path, key, "there is no such setting%s", didYouMean(key, names(func(s Setting) string { return s.Name })))
			delete(values, key)
		}
	}
	l.checkFileMode(path, values)
	return values
}

// checkFileMode warns when others can read a file that holds secrets.
func (l *loader) checkFileMode(path string, values map[string]string) {
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm()&0o077 == 0 {
		return
	}
	for _, s := range settings {
		if (s.Secret || s.mask != nil) && s.shown(values[s.Name]) != values[s.Name] {
			l.warn("%s holds a secret (%s) and others can read it; chmod 600 %s", path, s.Name, path)
		}
	}
}

// settle finds the strongest source of one setting and stores its value.
func (l *loader) settle(c *Config, s Setting, flags, file map[string]string) {
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
		l.fault(where, s.faultValue(raw), "%s", err)
	}
}

// faultValue is what a fault may show of a value.
func (s Setting) faultValue(raw string) string {
	if s.Secret || (s.mask != nil && strings.Contains(raw, "@")) {
		return ""
	}
	return raw
}

// fromEnv reads a setting's variable or one of its aliases.
func (l *loader) fromEnv(s Setting) (value, name string) {
	for _, candidate := range append([]string{s.Env}, s.Aliases...) {
		v := l.env[candidate]
		switch {
		case v == "" || v == value:
		case value != "":
			l.fault(candidate, s.faultValue(v), "%s means the same and says something else; set one of them only", name)
		default:
			value, name = v, candidate
		}
	}
	return value, name
}

// crossCheck looks at settings that must fit each other.
func (l *loader) crossCheck(c Config) {
	if (c.DefaultKernelPath == "") != (c.DefaultRootfsPath == "") {
		l.fault("HATCH_DEFAULT_KERNEL_PATH, HATCH_DEFAULT_ROOTFS_PATH", "", "both are needed, or neither")
	}
	if c.SSHPortMin > c.SSHPortMax && c.SSHPortMax != 0 {
		l.fault("HATCH_SSH_PORT_MIN", fmt.Sprint(c.SSHPortMin), "it must not be above HATCH_SSH_PORT_MAX, which is %d", c.SSHPortMax)
	}
	if c.UIDMin > c.UIDMax && c.UIDMax != 0 {
		l.fault("HATCH_UID_MIN", fmt.Sprint(c.UIDMin), "it must not be above HATCH_UID_MAX, which is %d", c.UIDMax)
	}
	l.checkHTTPPort(c)
}

func (l *loader) checkHTTPPort(c Config) {
	at := strings.LastIndex(c.HTTPAddr, ":")
	if at < 0 {
		return
	}
	var port int
	if _, err := fmt.Sscan(c.HTTPAddr[at+1:], &port); err == nil && port >= c.SSHPortMin && port <= c.SSHPortMax && c.SSHPortMin > 0 {
		l.fault("HATCH_HTTP_ADDR", c.HTTPAddr, "its port lies among VMs' SSH ports, HATCH_SSH_PORT_MIN %d to HATCH_SSH_PORT_MAX %d", c.SSHPortMin, c.SSHPortMax)
	}
}

// origin stores where values came from, defaults that follow from others included.
func (l *loader) origin(c *Config) {
	for name, effective := range map[string]string{"database_url": c.DatabaseURL, "agent_path": c.AgentPath} {
		if o := l.origins[name]; o.raw == "" {
			l.origins[name] = origin{effective, FromDefault}
		}
	}
	l.origins["data_dir"] = origin{filepath.Clean(c.DataDir), l.origins["data_dir"].source}
	c.origins, c.Warnings = l.origins, l.warnings
}
