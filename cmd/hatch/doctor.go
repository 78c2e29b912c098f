package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"
)

func doctorCommand(p *printer) *cobra.Command {
	var fix bool
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check whether this host can run VMs, and what is missing", Args: noArgs,
		Long: `Check whether this host can run hatchd and VMs. A check that
fails says how to fix it: with a command, which --fix runs, or in words.
The checks are those of hatchd doctor.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			program, err := daemonProgram()
			if err != nil {
				return err
			}
			args := []string{"doctor"}
			if cmd.Flags().Changed("output") {
				args = append(args, "-o", p.format.String())
			}
			if fix {
				args = append(args, "--fix")
			}
			return passThrough(cmd.Context(), p.streams, program, args)
		},
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "run the commands of failed checks, where there are any")
	return cmd
}

// daemonProgram returns the hatchd beside this program, else the one in PATH.
func daemonProgram() (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "hatchd")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	program, err := exec.LookPath("hatchd")
	if err != nil {
		return "", hint(errors.New("cannot check this host: hatchd is neither beside hatch nor in PATH"),
			"run hatchd doctor on the server's host")
	}
	return program, nil
}
