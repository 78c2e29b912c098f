package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// results prints what a command that takes several arguments did to each. Lines are
// printed as they come. In a structured format one argument gives one object, and
// several give a list, also if some of them failed.
type results struct {
	*printer
	several bool
	objects []any
	failed  error // of the first argument that failed
}

// forEach calls do for each argument and prints the results. If one fails, it is
// reported and the others are done.
func forEach(p *printer, cmd *cobra.Command, refs []string, verb string, do func(r *results, ref string) error) error {
	r := &results{printer: p, several: len(refs) > 1}
	for _, ref := range refs {
		err := do(r, ref)
		if err != nil && cmd.Context().Err() != nil {
			r.failed = err
			break
		}
		if err != nil {
			p.report(fmt.Errorf("cannot %s %s: %w", verb, ref, err))
			code, _ := classify(err)
			r.failed = errors.Join(r.failed, exitError(code))
		}
	}
	if r.several && p.format.structured() {
		return errors.Join(r.failed, printList(p, r.objects, nil))
	}
	return r.failed
}

// add prints the object of one argument, or what plain writes.
func (r *results) add(object any, plain func()) error {
	if r.several && r.format.structured() {
		r.objects = append(r.objects, object)
		return nil
	}
	return r.printOne(object, plain)
}

// addLine is add with a line instead of the object.
func (r *results) addLine(object any, line string) error {
	return r.add(object, func() { fmt.Fprintln(r.out, clean(line)) })
}

// removal is what the commands that delete objects print of each argument.
type removal struct {
	Status string `json:"status"` // deleted, or absent
	ID     string `json:"id,omitempty"`
	Name   string `json:"name,omitempty"`
	Ref    string `json:"ref"` // the argument
}

func (r *results) addDeleted(n named, ref string) error {
	return r.addLine(removal{"deleted", n.id, n.name, ref}, ref)
}
