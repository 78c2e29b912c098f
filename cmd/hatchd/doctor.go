package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/daemon/linux"
	"github.com/hatchvm/hatch/internal/doctor"
)

var errUnhealthy = errors.New("this host does not have all that hatchd needs")

// examine prints every check of the host; with --fix it runs the commands that
// mend what failed, and examines again.
func examine(ctx context.Context, args []string, out, errOut io.Writer) error {
	format, fix, rest, err := doctorFlags(args)
	if err != nil {
		return err
	}
	cfg, err := loadAsUnit(rest, errOut)
	if err != nil {
		return err
	}
	checks := doctor.Run(ctx, doctor.Local(), linux.DoctorSettings(cfg))
	if fix && !doctor.Healthy(checks) {
		mend(ctx, checks, errOut)
		checks = doctor.Run(ctx, doctor.Local(), linux.DoctorSettings(cfg))
	}
	if err := printChecks(out, format, checks); err != nil {
		return err
	}
	if !doctor.Healthy(checks) {
		return errUnhealthy
	}
	return nil
}

// doctorFlags takes doctor's own flags out of args; the rest is configuration.
func doctorFlags(args []string) (format string, fix bool, rest []string, err error) {
	fix, args = take(args, "--fix")
	own := pflag.NewFlagSet("doctor", pflag.ContinueOnError)
	own.Usage = func() {}
	own.StringVarP(&format, "output", "o", "table", "")
	for _, f := range flagNames() {
		own.String(f, "", "")
	}
	if err := own.Parse(args); err != nil {
		return "", false, nil, err
	}
	if format != "table" && format != "json" {
		return "", false, nil, fmt.Errorf("--output: %q is no format; table or json can be given", format)
	}
	own.Visit(func(f *pflag.Flag) {
		if f.Name != "output" {
			rest = append(rest, "--"+f.Name+"="+f.Value.String())
		}
	})
	return format, fix, rest, nil
}

func flagNames() (names []string) {
	config.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

func mend(ctx context.Context, checks []doctor.Check, errOut io.Writer) {
	for _, c := range checks {
		if c.Status != doctor.Fail || c.Fix == "" {
			continue
		}
		fmt.Fprintf(errOut, "hatchd: mending %s: %s\n", c.Name, c.Fix)
		if err := doctor.Fix(ctx, doctor.Local(), c); err != nil {
			fmt.Fprintln(errOut, "hatchd:", err)
		}
	}
}

func printChecks(out io.Writer, format string, checks []doctor.Check) error {
	if format == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(checks)
	}
	for _, c := range checks {
		fmt.Fprintf(out, "%-5s %-12s %s\n", c.Status, c.Name, c.Message)
		if c.Status != doctor.Pass && c.Fix != "" {
			fmt.Fprintf(out, "%-18s fix: %s\n", "", c.Fix)
		}
		if c.Status != doctor.Pass && c.Hint != "" {
			fmt.Fprintf(out, "%-18s %s\n", "", c.Hint)
		}
	}
	return nil
}
