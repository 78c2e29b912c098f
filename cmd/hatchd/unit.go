package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/hatchvm/hatch/internal/config"
)

// Where the unit is installed, and its file of settings.
const (
	unitFile     = "/etc/systemd/system/hatchd.service"
	unitSettings = "/etc/hatch/hatchd.env"
)

// loadAsUnit is load for a command that looks at the hatchd of this host: for root, on a
// host with the unit, the unit's settings count, too, after those of the environment.
func loadAsUnit(args []string, errOut io.Writer) (config.Config, error) {
	if os.Geteuid() != 0 {
		return load(args, errOut)
	}
	settings, err := ofUnit(unitFile, unitSettings)
	if err != nil {
		return config.Config{}, fmt.Errorf("cannot read the settings of hatchd.service: %w", err)
	}
	if len(settings) > 0 {
		fmt.Fprintf(errOut, "hatchd: with the settings of hatchd.service, of its file %s too\n", unitSettings)
	}
	return load(args, errOut, settings...)
}

// ofUnit returns the variables that a unit sets, and those of its file of settings,
// which win. Without a unit there are none.
func ofUnit(unit, settings string) (environ []string, err error) {
	text, err := os.ReadFile(unit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if variable, ok := strings.CutPrefix(strings.TrimSpace(line), "Environment="); ok {
			environ = append(environ, variable)
		}
	}
	if text, err = os.ReadFile(settings); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(name, "#") || strings.HasPrefix(name, ";") {
			continue
		}
		for _, quote := range []string{`"`, `'`} {
			if len(value) > 1 && strings.HasPrefix(value, quote) && strings.HasSuffix(value, quote) {
				value = value[1 : len(value)-1]
				break
			}
		}
		environ = append(environ, name+"="+value)
	}
	return environ, nil
}
