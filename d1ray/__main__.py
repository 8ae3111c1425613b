from d1ray.cli import main

main()
