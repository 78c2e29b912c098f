// Package arch tests the structure of the repository: which package may import
// which, that each has one package comment, that files stay short and that no
// package collects unrelated helpers.
//
// It has no code that runs in a program, and checks no style that a linter can
// check. Start at the table of layers in layers_test.go: a new package needs
// a line there, and a failing test says which.
package arch
