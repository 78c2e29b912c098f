package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// listFlags are the flags of commands that list objects. Fields are named as in the
// API.
type listFlags struct {
	quiet   bool
	filters []string
	sort    string
}

func (f *listFlags) add(p *printer, cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print ids only")
	flags.StringArrayVarP(&f.filters, "filter", "f", nil, "only objects with `FIELD=VALUE`, FIELD!=VALUE, label=KEY or label=KEY=VALUE; fields as with -o json (repeatable)")
	flags.StringVar(&f.sort, "sort", "", "sort by a `field`, as with -o json; -FIELD in descending order")
	flags.BoolVar(&p.noHeaders, "no-headers", false, "print tables without the first line")
}

// printListed prints the objects that the flags select, in their order.
func printListed[T any](p *printer, f *listFlags, list []T, name func(T) named, t func(list []T, wide bool) table) error {
	list, err := arranged(list, f)
	if err != nil {
		return err
	}
	if f.quiet {
		for _, object := range list {
			fmt.Fprintln(p.out, clean(name(object).id))
		}
		return nil
	}
	return printList(p, list, func(wide bool) table { return t(list, wide) })
}

// arranged returns the objects that --filter selects, in the order of --sort.
func arranged[T any](list []T, f *listFlags) ([]T, error) {
	type item struct {
		object T
		fields map[string]any
	}
	known := fieldNames(reflect.TypeFor[T]())
	by, descending := strings.CutPrefix(f.sort, "-")
	if by != "" && !slices.Contains(known, by) {
		return nil, usageError{fmt.Errorf("--sort: there is no field %q; there are %s", by, strings.Join(known, ", "))}
	}
	var items []item
	for _, object := range list {
		fields, err := fieldsOf(object)
		if err != nil {
			return nil, err
		}
		items = append(items, item{object, fields})
	}
	for _, filter := range f.filters {
		matches, err := parseFilter(filter, known)
		if err != nil {
			return nil, err
		}
		items = slices.DeleteFunc(items, func(i item) bool { return !matches(i.fields) })
	}
	if by != "" {
		slices.SortStableFunc(items, func(a, b item) int {
			order := compareFields(a.fields[by], b.fields[by])
			if descending {
				order = -order
			}
			return order
		})
	}
	chosen := make([]T, len(items))
	for i, it := range items {
		chosen[i] = it.object
	}
	return chosen, nil
}

// parseFilter returns a function that reports whether an object matches.
func parseFilter(filter string, known []string) (func(fields map[string]any) bool, error) {
	field, want, ok := strings.Cut(filter, "=")
	field, negated := strings.CutSuffix(field, "!")
	if field == "label" && ok && want != "" && slices.Contains(known, "labels") {
		key, value, hasValue := strings.Cut(want, "=")
		return func(fields map[string]any) bool {
			labels, _ := fields["labels"].(map[string]any)
			got, found := labels[key]
			return (found && (!hasValue || got == value)) != negated
		}, nil
	}
	if !ok || !slices.Contains(known, field) {
		return nil, usageError{fmt.Errorf("--filter takes FIELD=VALUE, FIELD!=VALUE, label=KEY or label=KEY=VALUE, not %q; fields are %s", filter, strings.Join(known, ", "))}
	}
	return func(fields map[string]any) bool { return (fmt.Sprint(fields[field]) == want) != negated }, nil
}

// compareFields compares numbers as such, all else as text.
func compareFields(a, b any) int {
	x, isNumber := number(a)
	y, isAlso := number(b)
	if isNumber && isAlso {
		return cmp.Compare(x, y)
	}
	return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b))
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case int64:
		return float64(n), true
	case float64:
		return n, true
	}
	return 0, v == "" // an absent number is the smallest
}

// fieldNames returns the names of a struct's fields in JSON, in their order.
func fieldNames(t reflect.Type) []string {
	var names []string
	if t.Kind() != reflect.Struct {
		return nil
	}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

// fieldsOf returns an object as it is in JSON. Fields that JSON leaves out are "".
func fieldsOf(object any) (map[string]any, error) {
	text, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.UseNumber()
	var decoded any
	if err := d.Decode(&decoded); err != nil {
		return nil, err
	}
	fields, ok := withNumbers(decoded).(map[string]any)
	if !ok {
		return nil, errors.New("there are no fields in it")
	}
	for _, name := range fieldNames(reflect.TypeOf(object)) {
		if _, ok := fields[name]; !ok {
			fields[name] = ""
		}
	}
	return fields, nil
}

// withNumbers replaces the numbers of decoded JSON by int64, or float64.
func withNumbers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			v[name] = withNumbers(value)
		}
	case []any:
		for i, value := range v {
			v[i] = withNumbers(value)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		n, _ := v.Float64()
		return n
	}
	return v
}
