package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/network"
)

// A parser stores a value, or says what would be right. Parsers get trimmed,
// non-empty text; values that are absent stay zero. The message never repeats
// the value: Fault does, when it may be shown.

func address(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		_, port, err := net.SplitHostPort(raw)
		if err != nil {
			return errors.New("an address with a port is needed, such as 127.0.0.1:8080 or :8080")
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return errors.New("the port must be a number from 0 to 65535, as in 127.0.0.1:8080")
		}
		*field(c) = raw
		return nil
	}
}

func directory(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		path, err := filepath.Abs(raw)
		if err != nil || strings.ContainsRune(raw, 0) {
			return errors.New("a directory is needed, such as /var/lib/hatch")
		}
		*field(c) = path
		return nil
	}
}

func absolute(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		if !filepath.IsAbs(raw) {
			return errors.New("an absolute path is needed; it must begin with /")
		}
		*field(c) = filepath.Clean(raw)
		return nil
	}
}

// program keeps a bare name, so that it is looked up in PATH.
func program(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		if strings.Contains(raw, "/") && !filepath.IsAbs(raw) {
			return errors.New("the name of a program in PATH or an absolute path is needed")
		}
		*field(c) = raw
		return nil
	}
}

func database(c *Config, raw string) error {
	if strings.HasPrefix(raw, "postgres://") || strings.HasPrefix(raw, "postgresql://") {
		if u, err := url.Parse(raw); err != nil || u.Path == "" || u.Path == "/" {
			return errors.New("the address must have the form postgres://USER:PASSWORD@HOST:PORT/NAME")
		}
		c.DatabaseURL = raw
		return nil
	}
	path := strings.TrimPrefix(raw, "sqlite://")
	if strings.Contains(path, "://") || !filepath.IsAbs(path) {
		return errors.New("postgres://… or the absolute path of an SQLite file is needed")
	}
	c.DatabaseURL = filepath.Clean(path)
	return nil
}

// minAPIKey is the least length of a preset key in bytes.
const minAPIKey = 16

func apiKey(c *Config, raw string) error {
	if len(raw) < minAPIKey || len(raw) > 512 {
		return fmt.Errorf("%d to 512 bytes are needed; this has %d", minAPIKey, len(raw))
	}
	if strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("only printable ASCII without spaces can be sent in a header")
	}
	c.APIKey = raw
	return nil
}

func whole[N int | int64](least, most N, field func(*Config) *N) func(*Config, string) error {
	return func(c *Config, raw string) error {
		n, err := strconv.ParseInt(raw, 10, 64)
		if err != nil || n < int64(least) || n > int64(most) {
			return fmt.Errorf("a whole number from %d to %d is needed", least, most)
		}
		*field(c) = N(n)
		return nil
	}
}

func factor(field func(*Config) *float64) func(*Config, string) error {
	return func(c *Config, raw string) error {
		f, err := strconv.ParseFloat(raw, 64)
		if err != nil || !(f >= 0.1 && f <= 100) { // also refuses NaN
			return errors.New("a number from 0.1 to 100 is needed, such as 1.5")
		}
		*field(c) = f
		return nil
	}
}

func truth(field func(*Config) *bool) func(*Config, string) error {
	return func(c *Config, raw string) error {
		if raw != "true" && raw != "false" {
			return errors.New("true or false is needed")
		}
		*field(c) = raw == "true"
		return nil
	}
}

func oneOf(choices []string, field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		if !slices.Contains(choices, raw) {
			return fmt.Errorf("one of %s is needed", strings.Join(choices, ", "))
		}
		*field(c) = raw
		return nil
	}
}

// maxBootArgs is the longest that a VM may have, in bytes.
const maxBootArgs = 1536

func bootArgs(c *Config, raw string) error {
	if len(raw) > maxBootArgs || strings.ContainsFunc(raw, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fmt.Errorf("up to %d bytes of printable ASCII can be given", maxBootArgs)
	}
	c.DefaultBootArgs = raw
	return nil
}

// maxInterfaceName is Linux's bound in bytes.
const maxInterfaceName = 15

func bridgeName(c *Config, raw string) error {
	bad := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/:%", r) }
	if len(raw) > maxInterfaceName || raw == "." || raw == ".." || strings.ContainsFunc(raw, bad) {
		return fmt.Errorf("an interface name is needed: up to %d letters, digits, '.', '_' and '-'", maxInterfaceName)
	}
	c.Network.Bridge = raw
	return nil
}

// bridgeCIDR keeps the bridge's name, which is a setting of its own.
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
			p, err := parseNetwork(strings.TrimSpace(part))
			if err != nil {
				return errors.New("networks with commas between are needed, such as 10.0.0.0/8,192.168.1.7/32")
			}
			list = append(list, p)
		}
		*field(c) = list
		return nil
	}
}

// parseNetwork reads a prefix, or one address as the prefix of itself.
func parseNetwork(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return a.Prefix(a.BitLen())
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err
}

func span(least, most time.Duration, example string, field func(*Config) *time.Duration) func(*Config, string) error {
	return func(c *Config, raw string) error {
		d, err := time.ParseDuration(raw)
		if err != nil || d < least || d > most {
			return fmt.Errorf("a duration with its unit from %s to %s is needed, such as %s", brief(least), brief(most), example)
		}
		*field(c) = d
		return nil
	}
}

// brief writes a duration without the zeros at its end.
func brief(d time.Duration) string {
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
		return errors.New("one of debug, info, warn, error is needed")
	}
	c.LogLevel = level
	return nil
}
