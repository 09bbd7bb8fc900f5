from penstock.engine.cli import main

main()
