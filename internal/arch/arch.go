// Package arch tests the shape of the repository: which package may import
// which, that each has one comment that says what it is for, that files stay
// short and that no package is a drawer for odds and ends.
//
// It holds no code that runs in a program, and it judges no style that a linter
// can judge. Start at the table of layers in layers_test.go: a new package needs
// a line there, and a failing test says which.
package arch
