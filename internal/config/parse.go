package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/network"
)

// A parser stores a value, or returns an error that says which values are valid. It gets
// trimmed, non-empty text; settings without a value stay zero. The error does not repeat
// the value: SettingError has it, unless it is a secret.

func address(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		_, port, err := net.SplitHostPort(raw)
		if err != nil {
			return errors.New("must be an address with a port, such as 127.0.0.1:8080 or :8080")
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return errors.New("must have a port from 0 to 65535, as in 127.0.0.1:8080")
		}
		*field(c) = raw
		return nil
	}
}

func directory(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		path, err := filepath.Abs(raw)
		if err != nil || strings.ContainsRune(raw, 0) {
			return errors.New("must be a directory, such as /var/lib/hatch")
		}
		*field(c) = path
		return nil
	}
}

func absolute(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		if !filepath.IsAbs(raw) {
			return errors.New("must be an absolute path, which begins with /")
		}
		*field(c) = filepath.Clean(raw)
		return nil
	}
}

// maxSocketPath is below the limit of Linux, with room for the name that a socket has
// while it is made.
const maxSocketPath = 100

func socket(c *Config, raw string) error {
	if c.Socket.Off = raw == "off"; c.Socket.Off {
		return nil
	}
	if !filepath.IsAbs(raw) || len(raw) > maxSocketPath {
		return fmt.Errorf("must be off, or an absolute path of up to %d bytes, such as %s", maxSocketPath, RunSocket)
	}
	c.Socket.Path = filepath.Clean(raw)
	return nil
}

// maxDirectories limits a list of directories.
const maxDirectories = 64

// directories accepts a list separated by colons, or by commas as the file's lists are.
func directories(field func(*Config) *[]string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		var list []string
		for part := range strings.FieldsFuncSeq(raw, func(r rune) bool { return r == ':' || r == ',' }) {
			path := strings.TrimSpace(part)
			if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
				return errors.New("must be absolute paths of directories, separated by colons, such as /srv/images:/srv/more")
			}
			list = append(list, filepath.Clean(path))
		}
		if len(list) > maxDirectories {
			return fmt.Errorf("must be at most %d directories", maxDirectories)
		}
		*field(c) = list
		return nil
	}
}

// maxCgroup limits the path of a cgroup, in bytes.
const maxCgroup = 1024

func cgroup(c *Config, raw string) error {
	bad := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`*?[\`, r) }
	if !filepath.IsAbs(raw) || filepath.Clean(raw) != raw || raw == "/" || len(raw) > maxCgroup || strings.ContainsFunc(raw, bad) {
		return errors.New("must be the absolute path of a cgroup, without .., such as /hatch or /system.slice/hatch-vms.service")
	}
	c.Cgroup = raw
	return nil
}

// program accepts an absolute path, or a name that is looked up in PATH.
func program(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		if strings.Contains(raw, "/") && !filepath.IsAbs(raw) {
			return errors.New("must be an absolute path or the name of a program in PATH")
		}
		*field(c) = raw
		return nil
	}
}

func database(c *Config, raw string) error {
	if strings.HasPrefix(raw, "postgres://") || strings.HasPrefix(raw, "postgresql://") {
		if u, err := url.Parse(raw); err != nil || u.Path == "" || u.Path == "/" {
			return errors.New("must have the form postgres://USER:PASSWORD@HOST:PORT/NAME")
		}
		c.DatabaseURL = raw
		return nil
	}
	path := strings.TrimPrefix(raw, "sqlite://")
	if strings.Contains(path, "://") || !filepath.IsAbs(path) {
		return errors.New("must be postgres://… or the absolute path of an SQLite file")
	}
	c.DatabaseURL = filepath.Clean(path)
	return nil
}

// Limits of a configured API key, in bytes.
const (
	minAPIKey = 16
	maxAPIKey = 512
)

func apiKey(c *Config, raw string) error {
	if len(raw) < minAPIKey || len(raw) > maxAPIKey {
		return fmt.Errorf("must be %d to %d bytes, but is %d", minAPIKey, maxAPIKey, len(raw))
	}
	if strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("must be printable ASCII without spaces, because clients send it in a header")
	}
	c.APIKey = raw
	return nil
}

func integer[N int | int64](least, most N, field func(*Config) *N) func(*Config, string) error {
	return func(c *Config, raw string) error {
		n, err := strconv.ParseInt(raw, 10, 64)
		if err != nil || n < int64(least) || n > int64(most) {
			return fmt.Errorf("must be a whole number from %d to %d", least, most)
		}
		*field(c) = N(n)
		return nil
	}
}

// Rate is how often something may happen: Burst times at once, and then PerSecond. The
// zero value is no limit.
type Rate struct {
	PerSecond float64
	Burst     int
}

func rate(field func(*Config) *Rate) func(*Config, string) error {
	return func(c *Config, raw string) error {
		if raw == "0" {
			*field(c) = Rate{}
			return nil
		}
		const most = 1e6
		perSecond, burst, _ := strings.Cut(raw, "/")
		r, err := strconv.ParseFloat(perSecond, 64)
		n, burstErr := strconv.Atoi(burst)
		if err != nil || burstErr != nil || !(r >= 0.01 && r <= most) || n < 1 || n > most { // also refuses NaN
			return errors.New("must be requests per second and how many at once, each up to 1000000, such as 50/500, or 0 for no limit")
		}
		*field(c) = Rate{r, n}
		return nil
	}
}

func factor(field func(*Config) *float64) func(*Config, string) error {
	return func(c *Config, raw string) error {
		f, err := strconv.ParseFloat(raw, 64)
		if err != nil || !(f >= 0.1 && f <= 100) { // also refuses NaN
			return errors.New("must be a number from 0.1 to 100, such as 1.5")
		}
		*field(c) = f
		return nil
	}
}

func boolean(field func(*Config) *bool) func(*Config, string) error {
	return func(c *Config, raw string) error {
		if raw != "true" && raw != "false" {
			return errors.New("must be true or false")
		}
		*field(c) = raw == "true"
		return nil
	}
}

func oneOf(choices []string, field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		if !slices.Contains(choices, raw) {
			return fmt.Errorf("must be one of %s", strings.Join(choices, ", "))
		}
		*field(c) = raw
		return nil
	}
}

// maxBootArgs limits the kernel command line, in bytes.
const maxBootArgs = 1536

func bootArgs(c *Config, raw string) error {
	if len(raw) > maxBootArgs || strings.ContainsFunc(raw, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fmt.Errorf("must be at most %d bytes of printable ASCII", maxBootArgs)
	}
	c.DefaultBootArgs = raw
	return nil
}

// mirrors accepts one or two URLs. They become words of a line for apt.
func mirrors(field func(*Config) *[]string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		invalid := errors.New("must be the URL of a Debian mirror, such as https://mirror.example.org/debian, and optionally a comma and that of its security archive")
		parts := strings.Split(raw, ",")
		if len(parts) > 2 {
			return invalid
		}
		for i, part := range parts {
			part = strings.TrimSpace(part)
			u, err := url.Parse(part)
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.ContainsAny(part, " \t[]#") {
				return invalid
			}
			parts[i] = part
		}
		*field(c) = parts
		return nil
	}
}

// origins parses a list of origins as browsers send them, or "*".
func origins(field func(*Config) *[]string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		parts := strings.Split(raw, ",")
		for i, part := range parts {
			part = strings.TrimSuffix(strings.TrimSpace(part), "/")
			u, err := url.Parse(part)
			whole := err == nil && (u.Scheme == "http" || u.Scheme == "https") && part == u.Scheme+"://"+u.Host && u.Host != ""
			if part != "*" && (!whole || strings.ContainsAny(part, "* \t")) {
				return fmt.Errorf("%q is not an origin: want a scheme, a host and no path, such as https://console.example.org, or *", part)
			}
			if part == "*" && len(parts) > 1 {
				return errors.New("* allows all origins, and stands alone")
			}
			parts[i] = strings.ToLower(part)
		}
		*field(c) = parts
		return nil
	}
}

// maxInterfaceName is Linux's limit, in bytes.
const maxInterfaceName = 15

func bridgeName(c *Config, raw string) error {
	bad := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/:%", r) }
	if len(raw) > maxInterfaceName || raw == "." || raw == ".." || strings.ContainsFunc(raw, bad) {
		return fmt.Errorf("must be an interface name: up to %d letters, digits, '.', '_' and '-'", maxInterfaceName)
	}
	c.Network.Bridge = raw
	return nil
}

// bridgeCIDR does not change the bridge's name, which is another setting.
func bridgeCIDR(c *Config, raw string) error {
	n, err := network.New(c.Network.Bridge, raw)
	if err != nil {
		return err
	}
	c.Network = n
	return nil
}

type prefixes []netip.Prefix

func networks(field func(*Config) *prefixes) func(*Config, string) error {
	return func(c *Config, raw string) error {
		var list prefixes
		for part := range strings.SplitSeq(raw, ",") {
			p, err := network.ParsePrefix(strings.TrimSpace(part))
			if err != nil {
				return errors.New("must be networks separated by commas, such as 10.0.0.0/8,192.168.1.7/32")
			}
			list = append(list, p)
		}
		*field(c) = list
		return nil
	}
}

func duration(least, most time.Duration, example string, field func(*Config) *time.Duration) func(*Config, string) error {
	return func(c *Config, raw string) error {
		d, err := time.ParseDuration(raw)
		if err != nil || d < least || d > most {
			return fmt.Errorf("must be a duration with its unit from %s to %s, such as %s", shortDuration(least), shortDuration(most), example)
		}
		*field(c) = d
		return nil
	}
}

// shortDuration formats a duration without zeros at its end.
func shortDuration(d time.Duration) string {
	text := d.String()
	if rest, cut := strings.CutSuffix(text, "m0s"); cut {
		text = rest + "m"
	}
	if rest, cut := strings.CutSuffix(text, "h0m"); cut {
		text = rest + "h"
	}
	return text
}

func logLevel(c *Config, raw string) error {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	level, ok := levels[strings.ToLower(raw)]
	if !ok {
		return errors.New("must be one of debug, info, warn, error")
	}
	c.LogLevel = level
	return nil
}

var domainForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)

// proxyDomain leaves room for a label below the domain.
func proxyDomain(c *Config, raw string) error {
	if len(raw) > 189 || !domainForm.MatchString(raw) {
		return errors.New("must be a domain in lower case, of up to 189 bytes, such as localhost or apps.example.org")
	}
	c.ProxyDomain = raw
	return nil
}

// addressOrOff is address, with "off" for none.
func addressOrOff(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		if raw == "off" {
			*field(c) = ""
			return nil
		}
		return address(field)(c, raw)
	}
}

func email(c *Config, raw string) error {
	if a, err := mail.ParseAddress(raw); err != nil || a.Address != raw {
		return errors.New("must be an email address, such as admin@example.org")
	}
	c.ACMEEmail = raw
	return nil
}

func httpsURL(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		if u, err := url.Parse(raw); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
			return errors.New("must be a URL that begins with https://")
		}
		*field(c) = raw
		return nil
	}
}

var dnsKeyForm = regexp.MustCompile(`^[A-Za-z0-9._-]+:[A-Za-z0-9+/]+=*$`)

func dnsKey(c *Config, raw string) error {
	if !dnsKeyForm.MatchString(raw) {
		return errors.New("must be the name of a TSIG key, a colon, and its secret in base64")
	}
	c.ACMEDNSKey = raw
	return nil
}
