from merging.cli import main

main()
