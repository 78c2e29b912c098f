package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// named is the id and the name by which an object can be referred to.
type named struct{ id, name string }

func (n named) String() string {
	if n.name == "" {
		return n.id
	}
	return n.id + " (" + n.name + ")"
}

// maxMatches bounds how many candidates an error lists.
const maxMatches = 5

// pick finds what ref refers to: an id, a name, or a prefix of one id, with or
// without the part up to the underscore. noun is for the error.
func pick(noun, ref string, among []named) (named, error) {
	if ref == "" {
		return named{}, fmt.Errorf("the %s's name is empty", noun)
	}
	for _, n := range among {
		if n.id == ref {
			return n, nil
		}
	}
	for _, n := range among {
		if n.name == ref {
			return n, nil
		}
	}
	var found []named
	for _, n := range among {
		_, rest, _ := strings.Cut(n.id, "_")
		if strings.HasPrefix(n.id, ref) || strings.HasPrefix(rest, ref) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return named{}, absent{noun, ref}
	case 1:
		return found[0], nil
	}
	var list []string
	for _, n := range found[:min(len(found), maxMatches)] {
		list = append(list, n.String())
	}
	if more := len(found) - len(list); more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return named{}, hint(fmt.Errorf("%q could be any of these %ss: %s", ref, noun, strings.Join(list, ", ")), "give more of the id")
}

// absent is the error of a reference to no object.
type absent struct{ noun, ref string }

func (a absent) Error() string { return fmt.Sprintf("there is no %s %q", a.noun, a.ref) }

func isAbsent(err error) bool {
	var a absent
	return errors.As(err, &a)
}

// pickFrom is pick for objects of any type. If it fails, the hint is the command
// ls, which lists them.
func pickFrom[T any](k kind[T], ref string, objects []T) (T, error) {
	names := make([]named, len(objects))
	for i, o := range objects {
		names[i] = k.name(o)
	}
	found, err := pick(k.noun, ref, names)
	if err == nil {
		return objects[slices.Index(names, found)], nil
	}
	if _, ok := errors.AsType[hinted](err); !ok {
		err = hint(err, "%s", k.ls)
	}
	var none T
	return none, err
}
