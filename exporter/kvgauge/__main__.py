from kvgauge.cli import main

main()
